"""The step that server and sites take: the same bits as in exact arithmetic that is rounded once an operation."""

import itertools
import json
import math
import struct
from dataclasses import replace
from functools import cache
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
from grandrounds.common.schema import known
from grandrounds.common.study.step import (
    DueStep,
    LastStep,
    Missing,
    Trained,
    mean_gradient,
    step,
    sum_bytes,
    sum_from_bytes,
)

OPTIMIZERS = ("sgd", "momentum", "adam", "disk")
TRUSTS = ("distributed", "local")
D = 4
IDENTITIES = {f"site-{i}": Identity.from_bytes(bytes([i]) * 32) for i in range(1, 6)}
SERVER = Identity.from_bytes(bytes(32))
SURVIVORS = ("site-1", "site-2", "site-4", "site-5")
TRAINING = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "filter_gain": 0.3}
KNOWN = json.loads((VECTORS / "step.json").read_text(encoding="utf-8"))


# What each round's number changes; the known steps' ``levers``.
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "decay, coordinate": {"noise_correction": "coordinate", "weight_decay": 0.25, "rate_decay": "inverse-sqrt"},
    "tensor": {"noise_correction": "tensor"},
    "linear, mean": {"rate_decay": "linear", "warmup_rounds": 1, "averaging": "mean", "averaged_rounds": 3},
    "decay": {"weight_decay": 0.25},
    "cosine, ema": {"rate_decay": "cosine", "warmup_rounds": 2, "averaging": "ema", "averaged_rounds": 4},
}


@cache
def manifest_of(optimizer: str, trust: str = "distributed", levers: str = "none") -> Any:
    training = {**TRAINING, "rounds": 6, "max_attempts": 6, "optimizer": optimizer, **LEVERS[levers]}
    study = small_study(
        (3, 4, 5, 6, 7),
        trust=trust,
        training=training,
        secagg={"update_range": 0.3},
        noise_multiplier=10.0 if "noise_correction" in training else None,
    )
    return small_manifest(study, IDENTITIES, SERVER, dimension=D, tensor_sizes=[1, D - 1])


MANIFESTS = {(optimizer, trust): manifest_of(optimizer, trust) for optimizer in OPTIMIZERS for trust in TRUSTS}


def single(value: float) -> float:
    """Rounded to float32. After one operation on such numbers in float64 that is the operation's one right result.

    Of +, −, ×, ÷ and √: float64 has more than twice the digits (Figueroa 1995).
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


# By round: what the rate is multiplied by, and the weight of the adapter in the average.
BY_ROUND = {
    "none": ([1.0] * 6, [1.0] * 6),
    "decay, coordinate": ([1 / math.sqrt(round_) for round_ in range(1, 7)], [1.0] * 6),
    "tensor": ([1.0] * 6, [1.0] * 6),
    "decay": ([1.0] * 6, [1.0] * 6),
    "linear, mean": ([1 / 2, 1.0, 4 / 5, 3 / 5, 2 / 5, 1 / 5], [1.0, 1.0, 1.0, 1.0, 1 / 2, 1 / 3]),
    "cosine, ema": (
        [1 / 3, 2 / 3, 1.0, (2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4],
        [1, 1 / 2] + 4 * [2 / 5],
    ),
}


def gradient_of(trust: str, number: int) -> float:
    """The mean gradient of one coordinate, in float64, from the centred sum."""
    manifest = MANIFESTS["sgd", trust]
    units = sum(manifest.nominal_units(site) for site in SURVIVORS)
    if trust == "distributed":
        return number / manifest.lattice.scale / (1 * units)
    return -(number / manifest.fixed_point.scale) / (units / (3 + 4 + 5 + 6 + 7))


def reference(
    optimizer: str, trust: str, adapter: list[float], sums: list[list[int]], levers: str = "none"
) -> tuple[bytes, bytes]:
    """The steps in plain Python, one number after the other: the adapter, and what is remembered of the steps."""
    factors, weights = BY_ROUND[levers]
    correction, weight_decay = (LEVERS[levers].get(name, 0) for name in ("noise_correction", "weight_decay"))
    beta1, beta2, gain = TRAINING["beta1"], TRAINING["beta2"], TRAINING["filter_gain"]
    rest1, rest2 = single(1 - beta1), single(1 - beta2)
    # Of four survivors each has all of its noise in the sum: a share of a quarter, and a layer of 1/3 - 1/4.
    claimed, unit = 10 * manifest_of(optimizer, trust, levers).lattice.sensitivity, gradient_of(trust, 1)
    variance_in_sum = 4 * (math.ceil(claimed / math.sqrt(4)) ** 2 + math.ceil(claimed / math.sqrt(12)) ** 2)
    noise = variance_in_sum * unit * unit if correction else 0.0
    power1 = power2 = 1.0
    moment = variance = 0.0
    average, mean, square, velocity, ahead = list(adapter), [0.0] * D, [0.0] * D, [0.0] * D, [0.0] * D
    for number, total in enumerate(sums):
        exact, weight = TRAINING["learning_rate"] * factors[number], weights[number]
        rate, kept = single(exact), single(1 - exact * weight_decay)
        power1, power2 = power1 * beta1, power2 * beta2
        moment = beta2 * moment + (1 - beta2) * noise
        variance = beta2 * beta2 * variance + (1 - beta2) * (1 - beta2) * 2 * noise * noise
        for i in range(D):
            gradient = single(gradient_of(trust, total[i]))
            squared, alike = single(gradient * gradient), 1
            if correction == "tensor":
                tensor = total[:1] if i == 0 else total[1:]
                alike = len(tensor)
                squared = single(sum(value * value for value in tensor) * unit * unit / alike)
            change = single(rate * gradient)
            if optimizer == "momentum":
                velocity[i] = gradient if number == 0 else single(single(single(beta1) * velocity[i]) + gradient)
                change = single(rate * velocity[i])
            elif optimizer == "adam":
                mean[i] = single(single(single(beta1) * mean[i]) + single(rest1 * gradient))
                square[i] = single(single(single(beta2) * square[i]) + single(rest2 * squared))
                unbiased = single(square[i] / single(1 - power2))
                if correction:
                    least = single(math.sqrt(variance / alike) / (1 - power2))
                    unbiased = max(single(unbiased - single(moment / (1 - power2))), least)
                above = single(rate * single(mean[i] / single(1 - power1)))
                change = single(above / single(single(math.sqrt(unbiased)) + single(ADAM_EPSILON)))
            elif optimizer == "disk":
                filtered = single(single(single(1 - gain) * mean[i]) + single(single(gain) * gradient))
                mean[i] = gradient if number == 0 else filtered
                change = single(rate * mean[i])
            before = single(adapter[i] - ahead[i])
            adapter[i] = iterate = single(single(before * kept) - change)
            if optimizer == "disk":
                ahead[i] = single(single((1 - gain) / gain) * single(iterate - before))
                adapter[i] = single(iterate + ahead[i])
                iterate = single(adapter[i] - ahead[i])
            moved = single(average[i] + single(single(weight) * single(iterate - average[i])))
            average[i] = iterate if weight == 1 else moved
    state = average if "averaging" in LEVERS[levers] or optimizer == "disk" else []
    state = state + {"sgd": [], "momentum": velocity, "adam": mean, "disk": mean + ahead}[optimizer]
    state += [] if optimizer != "adam" else square[:2] if correction == "tensor" else square
    pairs = ([power1, power2] if optimizer == "adam" else []) + ([moment, variance] if correction else [])
    kept_bytes = struct.pack(f"<{len(state)}f", *state) + struct.pack(f"<{len(pairs)}d", *pairs)
    return struct.pack(f"<{D}f", *adapter), kept_bytes


def taken(manifest: Any, sums: list[list[int]], start: Trained, *, done: int = 0) -> Trained:
    for round_, total in enumerate(sums, start=1 + done):
        of = sum_bytes(manifest, np.array(total, dtype=np.int64))
        start = step(
            DueStep(
                manifest=manifest, before=start, total=of, survivors=SURVIVORS, round=round_, attempt=round_, shown=()
            )
        )
    return start


def first() -> Trained:
    return Trained(adapter=np.array([0.0, 1.0, -0.25, 1e-3], dtype=np.float32))


@pytest.mark.parametrize(
    ("optimizer", "levers"),
    [
        ("sgd", "none"),
        ("momentum", "cosine, ema"),
        ("disk", "none"),
        ("disk", "decay"),
        ("disk", "linear, mean"),
        *(("adam", levers) for levers in ("none", "linear, mean", "decay, coordinate", "tensor")),
    ],
)
@settings(max_examples=60, deadline=None)
@given(sums=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=D, max_size=D), min_size=1, max_size=6))
def test_a_step_has_the_bits_of_arithmetic_that_is_rounded_once_an_operation(optimizer, levers, sums):
    manifest = manifest_of(optimizer, levers=levers)
    after = taken(manifest, sums, first())
    adapter, state = reference(optimizer, "distributed", first().vector.tolist(), sums, levers)
    assert vector_bytes(after.vector).hex() == adapter.hex()
    assert bytes(after.optimizer[:]).hex() == state.hex()


def known_manifest(known: dict[str, Any]) -> Any:
    return manifest_of(known["optimizer"], known["trust"], known["levers"])


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(
    "known", KNOWN["steps"], ids=lambda known: f"{known['optimizer']}, {known['trust']}, {known['levers']}"
)
def test_a_step_has_the_same_bits_in_blocks_of_any_size(known, block, monkeypatch):
    monkeypatch.setattr("grandrounds.common.study.step._BLOCK", block)
    after = taken(known_manifest(known), known["sums"], first())
    assert (vector_bytes(after.vector).hex(), bytes(after.optimizer[:]).hex()) == (known["adapter"], known["state"])


@pytest.mark.parametrize(
    "known", KNOWN["steps"], ids=lambda known: f"{known['optimizer']}, {known['trust']}, {known['levers']}"
)
def test_known_steps_have_their_known_bits(known):
    manifest = known_manifest(known)
    after = taken(manifest, known["sums"], first())
    assert (vector_bytes(after.vector).hex(), bytes(after.optimizer[:]).hex()) == (known["adapter"], known["state"])
    totals = [sum_bytes(manifest, np.array(total, dtype=np.int64)).hex() for total in known["sums"]]
    assert totals == known["sum_bytes"]


@pytest.mark.parametrize(
    ("optimizer", "trust", "levers"),
    [*((optimizer, trust, "none") for optimizer in OPTIMIZERS for trust in TRUSTS), ("sgd", "local", "linear, mean")],
)
def test_steps_go_on_from_what_was_sent_or_stored_as_they_would_have_without(optimizer, trust, levers):
    manifest, sums = manifest_of(optimizer, trust, levers), [[5, -7, 1000, 0], [1, 2, 3, 4], [-9, 8, -7, 6]]
    whole = taken(manifest, sums, first())
    for cut in range(len(sums)):
        middle = taken(manifest, sums[:cut], first())
        sent = Missing.parse(Missing(before=middle).packed(), dimension=D)
        assert sent.before is not None
        after = taken(manifest, sums[cut:], sent.before, done=cut)
        assert (after.adapter_sha256, after.optimizer_sha256) == (whole.adapter_sha256, whole.optimizer_sha256)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "disk"])
def test_what_the_optimiser_remembers_matters(optimizer):
    manifest, sums = MANIFESTS[optimizer, "distributed"], [[500, -700, 1000, 3], [1, 2, 3, 4]]
    middle = taken(manifest, sums[:1], first())
    forgotten = Trained(adapter=middle.adapter)
    assert taken(manifest, sums[1:], middle).adapter_sha256 != taken(manifest, sums[1:], forgotten).adapter_sha256


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 4 * D - 1, 4 * D + 1, 8 * D, 8 * D + 8, 100])
def test_what_no_optimiser_of_the_study_remembers_is_refused(optimizer, size):
    with pytest.raises(EnvelopeError, match="does not remember"):
        taken(MANIFESTS[optimizer, "local"], [[0] * D], replace(first(), optimizer=bytes(size)))


@pytest.mark.parametrize(("trust", "size"), [("distributed", 4), ("local", 2)])
def test_a_sum_is_sent_in_as_many_bytes_as_an_update_and_comes_back(trust, size):
    manifest, most = MANIFESTS["sgd", trust], 2 ** (8 * size - 1)
    aggregate = np.array([0, -1, most - 1, -most], dtype=np.int64)
    total = bytes(sum_bytes(manifest, aggregate))
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


def test_public_units_of_the_survivors_are_in_what_a_sum_is_divided_by():
    distributed = MANIFESTS["sgd", "distributed"]
    data = distributed.study.data.model_copy(update={"public": f"sha256:{'ab' * 32}", "public_units": 5})
    mixed = distributed.model_copy(update={"study": distributed.study.model_copy(update={"data": data})})
    privacy = mixed.study.privacy.model_copy(update={"sampling_probability": 0.1})
    tenth = mixed.model_copy(update={"study": mixed.study.model_copy(update={"privacy": privacy})})
    in_each_order = {tenth.step_units(sites) for sites in itertools.permutations(SURVIVORS)}
    assert len(in_each_order) == 1, "every machine divides by the same number, to the last bit"
    aggregate = np.full(D, 1000, dtype=np.int64)
    expected = 1000 / mixed.lattice.scale / (3 + 4 + 6 + 7 + 4 * 5)
    np.testing.assert_allclose(mean_gradient(mixed, aggregate, SURVIVORS), expected, rtol=1e-12)


def test_what_noise_was_taken_off_a_sum_is_no_longer_corrected() -> None:
    manifest, total = manifest_of("adam", levers="tensor"), np.array([500, -700, 1000, 3], dtype="<i4").tobytes()
    noise = known(manifest.site_noise(1))
    base, layer = noise.stddev, noise.layers[0].stddev
    everyone, two = tuple(IDENTITIES), ("site-1", "site-4")
    assert manifest.variance_in_sum(everyone, shown=two, attempt=1) == 5 * base**2 + 3 * layer**2
    assert manifest.variance_in_sum(SURVIVORS, shown=two, attempt=1) == 4 * (base**2 + layer**2), (
        "of so few nothing is taken off"
    )
    taken_off = [
        step(
            DueStep(manifest=manifest, before=first(), total=total, survivors=everyone, round=1, attempt=1, shown=shown)
        )
        for shown in ((), two, everyone)
    ]
    assert len({after.optimizer_sha256 for after in taken_off}) == 3


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
