"""The step that server and sites take: the same bits as in exact arithmetic that is rounded once an operation."""

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import VECTORS
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError
from grandrounds.common.model.adapter import vector_bytes
from grandrounds.common.model.optimizers import ADAM_EPSILON
from grandrounds.common.protocol.messages import pack
from grandrounds.common.study.step import LastStep, Missing, Trained, mean_gradient, step, sum_bytes, sum_from_bytes

OPTIMIZERS = ("sgd", "momentum", "adam")
TRUSTS = ("distributed", "local")
D = 4
IDENTITIES = {f"site-{i}": Identity.from_bytes(bytes([i]) * 32) for i in range(1, 6)}
SERVER = Identity.from_bytes(bytes(32))
SURVIVORS = ("site-1", "site-2", "site-4", "site-5")
TRAINING = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95}
KNOWN = json.loads((VECTORS / "step.json").read_text(encoding="utf-8"))


def manifest_of(optimizer: str, trust: str = "distributed") -> Any:
    study = small_study(
        (3, 4, 5, 6, 7), trust=trust, training={**TRAINING, "optimizer": optimizer}, secagg={"update_range": 0.3}
    )
    return small_manifest(study, IDENTITIES, SERVER, dimension=D)


MANIFESTS = {(optimizer, trust): manifest_of(optimizer, trust) for optimizer in OPTIMIZERS for trust in TRUSTS}


def single(value: float) -> float:
    """Rounded to float32. After one operation on such numbers in float64 that is the operation's one right result.

    Of +, −, ×, ÷ and √: float64 has more than twice the digits (Figueroa 1995).
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def gradient_of(trust: str, number: int) -> float:
    """The mean gradient of one coordinate, in float64, from the centred sum."""
    manifest = MANIFESTS["sgd", trust]
    units = sum(manifest.nominal_units(site) for site in SURVIVORS)
    if trust == "distributed":
        return number / manifest.lattice.scale / (1 * units)
    return -(number / manifest.fixed_point.scale) / (units / (3 + 4 + 5 + 6 + 7))


def reference(optimizer: str, trust: str, adapter: list[float], sums: list[list[int]]) -> tuple[bytes, bytes]:
    """The steps in plain Python, one number after the other: the adapter, and what the optimiser remembers."""
    rate, beta1, beta2 = (single(TRAINING[name]) for name in ("learning_rate", "beta1", "beta2"))
    rest1, rest2 = single(1 - TRAINING["beta1"]), single(1 - TRAINING["beta2"])
    power1 = power2 = 1.0
    remembered = [[0.0] * D, [0.0] * D]
    for number, total in enumerate(sums):
        power1, power2 = power1 * TRAINING["beta1"], power2 * TRAINING["beta2"]
        for i in range(D):
            gradient = single(gradient_of(trust, total[i]))
            change = single(rate * gradient)
            if optimizer == "momentum":
                velocity = gradient if number == 0 else single(single(beta1 * remembered[0][i]) + gradient)
                remembered[0][i], change = velocity, single(rate * velocity)
            elif optimizer == "adam":
                mean = single(single(beta1 * remembered[0][i]) + single(rest1 * gradient))
                square = single(single(beta2 * remembered[1][i]) + single(rest2 * single(gradient * gradient)))
                remembered[0][i], remembered[1][i] = mean, square
                root = single(math.sqrt(single(square / single(1 - power2))))
                above = single(rate * single(mean / single(1 - power1)))
                change = single(above / single(root + single(ADAM_EPSILON)))
            adapter[i] = single(adapter[i] - change)
    kept = remembered[: {"sgd": 0, "momentum": 1, "adam": 2}[optimizer]]
    state = b"".join(struct.pack(f"<{D}f", *numbers) for numbers in kept)
    return struct.pack(f"<{D}f", *adapter), state + (struct.pack("<2d", power1, power2) if optimizer == "adam" else b"")


def taken(manifest: Any, sums: list[list[int]], start: Trained) -> Trained:
    for total in sums:
        start = step(manifest, start, np.array(total, dtype=np.int64), SURVIVORS)
    return start


def first() -> Trained:
    return Trained(adapter=np.array([0.0, 1.0, -0.25, 1e-3], dtype=np.float32))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=60, deadline=None)
@given(sums=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=D, max_size=D), min_size=1, max_size=6))
def test_a_step_has_the_bits_of_arithmetic_that_is_rounded_once_an_operation(optimizer, sums):
    manifest = MANIFESTS[optimizer, "distributed"]
    after = taken(manifest, sums, first())
    adapter, state = reference(optimizer, "distributed", first().adapter.tolist(), sums)
    assert vector_bytes(after.adapter).hex() == adapter.hex()
    assert after.optimizer.hex() == state.hex()


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("known", KNOWN["steps"], ids=lambda known: f"{known['optimizer']}, {known['trust']}")
def test_a_step_has_the_same_bits_in_blocks_of_any_size(known, block, monkeypatch):
    monkeypatch.setattr("grandrounds.common.study.step._BLOCK", block)
    after = taken(MANIFESTS[known["optimizer"], known["trust"]], known["sums"], first())
    assert (vector_bytes(after.adapter).hex(), after.optimizer.hex()) == (known["adapter"], known["state"])


@pytest.mark.parametrize("known", KNOWN["steps"], ids=lambda known: f"{known['optimizer']}, {known['trust']}")
def test_known_steps_have_their_known_bits(known):
    manifest = MANIFESTS[known["optimizer"], known["trust"]]
    after = taken(manifest, known["sums"], first())
    assert (vector_bytes(after.adapter).hex(), after.optimizer.hex()) == (known["adapter"], known["state"])
    totals = [sum_bytes(manifest, np.array(total, dtype=np.int64)).hex() for total in known["sums"]]
    assert totals == known["sum_bytes"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trust", TRUSTS)
def test_steps_go_on_from_what_was_sent_or_stored_as_they_would_have_without(optimizer, trust):
    manifest, sums = MANIFESTS[optimizer, trust], [[5, -7, 1000, 0], [1, 2, 3, 4], [-9, 8, -7, 6]]
    whole = taken(manifest, sums, first())
    for cut in range(len(sums)):
        middle = taken(manifest, sums[:cut], first())
        sent = Missing.parse(b"".join(Missing(before=middle, total=b"").packed()), dimension=D)
        assert sent.before is not None
        after = taken(manifest, sums[cut:], sent.before)
        assert (after.adapter_sha256, after.optimizer_sha256) == (whole.adapter_sha256, whole.optimizer_sha256)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_what_the_optimiser_remembers_matters(optimizer):
    manifest, sums = MANIFESTS[optimizer, "distributed"], [[500, -700, 1000, 3], [1, 2, 3, 4]]
    middle = taken(manifest, sums[:1], first())
    forgotten = Trained(adapter=middle.adapter)
    assert taken(manifest, sums[1:], middle).adapter_sha256 != taken(manifest, sums[1:], forgotten).adapter_sha256


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 4 * D - 1, 4 * D + 1, 8 * D, 8 * D + 8, 100])
def test_what_no_optimiser_of_the_study_remembers_is_refused(optimizer, size):
    with pytest.raises(EnvelopeError, match="does not remember"):
        step(MANIFESTS[optimizer, "local"], replace(first(), optimizer=bytes(size)), np.zeros(D, np.int64), SURVIVORS)


@pytest.mark.parametrize(("trust", "size"), [("distributed", 4), ("local", 2)])
def test_a_sum_is_sent_in_as_many_bytes_as_an_update_and_comes_back(trust, size):
    manifest, most = MANIFESTS["sgd", trust], 2 ** (8 * size - 1)
    aggregate = np.array([0, -1, most - 1, -most], dtype=np.int64)
    total = sum_bytes(manifest, aggregate)
    assert len(total) == size * D
    assert sum_from_bytes(manifest, total).tolist() == aggregate.tolist()
    for wrong in (b"", total[:-1], total + b"\0"):
        with pytest.raises(EnvelopeError, match="a sum of"):
            sum_from_bytes(manifest, wrong)


def test_a_sum_is_divided_by_nominal_units_of_its_survivors_alone():
    aggregate = np.full(D, 1000, dtype=np.int64)
    distributed, local = MANIFESTS["sgd", "distributed"], MANIFESTS["sgd", "local"]
    units = 3 + 4 + 6 + 7
    expected = 1000 / distributed.lattice.scale / units
    np.testing.assert_allclose(mean_gradient(distributed, aggregate, SURVIVORS), expected, rtol=1e-12)
    np.testing.assert_allclose(
        mean_gradient(local, aggregate, SURVIVORS), -1000 / local.fixed_point.scale * 25 / units, rtol=1e-12
    )


def test_a_site_is_sent_what_it_lacks_and_no_more():
    before, after = first(), replace(first(), optimizer=b"later")
    begun, later = LastStep(after=before), LastStep(after=after, before=before, total=b"sum")
    for behind, expected in {0: (None, b""), 1: (None, b"sum"), 2: (before, b"sum"), None: (before, b"sum")}.items():
        missing = later.missing(behind=behind)
        assert (missing.before, missing.total) == expected
    assert begun.missing(behind=None).before is before
    assert begun.missing(behind=0).before is None


@pytest.mark.parametrize("parts", [[], [b""], [b"", b""], [b"", b"", b"", b""], [b"x", b"", b""], [bytes(4), b"", b""]])
def test_other_parts_of_an_adapter_are_refused(parts):
    with pytest.raises(EnvelopeError):
        Missing.parse(pack(parts), dimension=D)
    with pytest.raises(EnvelopeError):
        Missing.parse(b"", dimension=D)
