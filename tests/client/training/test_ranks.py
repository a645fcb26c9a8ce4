"""A step over several processes is the step of one, bit for bit; and where one of them is lost, nothing is released."""

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import Pipe, active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.study.tiny_models import TARGETS, VOCABULARY, save_tiny_model, tiny_example
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from grandrounds.client.training import dp_sgd, ranks
from grandrounds.client.training.batch_invariance import check_alike
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.physical_batch import MachineSampler
from grandrounds.client.training.rank_processes import begin, start_ranks
from grandrounds.client.training.ranks import Failed, RankLost, Ranks
from grandrounds.client.training.sharding import base_bytes, shard
from grandrounds.common.data.buckets import bucket_lengths
from grandrounds.common.errors import ModelError
from grandrounds.common.model.base_model import Precision
from grandrounds.common.model.devices import Checkpointing, Sharding
from grandrounds.common.model.example import Example
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.privacy.mechanism import Lattice, Mechanism, NoNoise, RoundedGaussian
from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study
from grandrounds.deploy.bench.steps.kinds import Task, private_on

MAX_TOKENS = 24
DEVICES = ("cpu", "cpu")
STDDEV = 1 << 20
NO_MESH: Any = None
LISTENING: list[Any] = []  # ends of pipes that stay open


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), width=64)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    """Two processes, this one among them; of the other, which loads PyTorch anew, there is one for all tests."""
    threads = torch.get_num_threads()
    yield start_ranks(DEVICES)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # What is cached of sharded tensors has the group, too: a child that is forked later would wait for its threads.
        _clear_sharding_prop_cache()
        gc.collect()
    torch.set_num_threads(threads)


def study_of(precision: Precision = "float32") -> Study:
    fields = {
        "model": {"target_modules": TARGETS["llama"], "precision": precision},
        "data": {"max_tokens": MAX_TOKENS},
        "privacy": {"sampling_probability": 0.5},
        "training": {"physical_batch": 2},
        "sites": [{"name": site, "nominal_units": 20} for site in ("north", "south", "west")],
    }
    return validated(Study, fields)


def loaded(folder: Path, study: Study) -> LanguageModel:
    model = LanguageModel.load(folder, study.model.lora, seed=3, precision=study.model.precision)
    model.set_adapter(np.random.default_rng(5).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    return model


def on(
    pair: Ranks, folder: Path, study: Study, *, checkpointing: Checkpointing = "off", sharding: Sharding = "off"
) -> MachineSampler:
    """Gradients of the study on two processes."""
    model = loaded(folder, study)
    return begin(pair, model, base=folder, study=study, checkpointing=checkpointing, sharding=sharding)


def dp_sgd_of(sampler: GradSampler, mechanism: Mechanism | None = None, **observed: Any) -> DpSgd:
    lattice = Lattice(dimension=sampler.model.layout.dimension, clipping_norm=0.5)
    return DpSgd(sampler=sampler, lattice=lattice, mechanism=mechanism or NoNoise(), **observed)


def units() -> list[list[Example]]:
    """Units of all lengths and with several records, of which one cannot be computed, and one is none."""
    rng, lengths = np.random.default_rng(1), bucket_lengths(MAX_TOKENS)

    def record() -> Example:
        length = int(rng.integers(2, MAX_TOKENS + 1))
        return tiny_example(rng, length=length, max_tokens=next(end for end in lengths if end >= length))

    drawn = [[record() for _ in range(records)] for records in (1, 2, 1, 3, 1, 1, 0, 2, 1)]
    unknown = record()
    unknown.token_ids[0] = VOCABULARY
    return [*drawn, [record(), unknown]]


def test_a_benchmark_s_step_is_one_over_both(folder: Path, pair: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = Ranks.ask
    task = Task.random(loaded(folder, study_of()), records=3, tokens=MAX_TOKENS, batch=2)
    step = private_on(pair, task, base=folder, study=study_of())

    def counted(self: Ranks, orders: Sequence[Any]) -> None:
        asked.extend(len(order.units) for order in orders)
        ask(self, orders)

    monkeypatch.setattr(Ranks, "ask", counted)
    before = task.model.get_adapter()
    step()
    assert asked == [1]
    assert not np.array_equal(task.model.get_adapter(), before)


CASES = [
    ("float32", "off", "off"),
    ("float32", "off", "on"),
    ("float32", "auto", "on"),
    ("bfloat16", "on", "off"),
    ("bfloat16", "on", "on"),
    ("nf4", "off", "off"),
]


@pytest.mark.parametrize(("precision", "checkpointing", "sharding"), CASES)
def test_two_processes_release_the_integers_of_one_and_see_what_it_sees(
    folder: Path, pair: Ranks, precision: Precision, checkpointing: Checkpointing, sharding: Sharding
) -> None:
    study = study_of(precision)
    seen: list[Any] = []
    two = on(pair, folder, study, checkpointing=checkpointing, sharding=sharding)
    one = MachineSampler(study, loaded(folder, study), checkpointing=checkpointing)
    size = base_bytes(one.model) / 2**30
    lies = f"in parts of {size / 2:.2g} GiB" if sharding == "on" else f"whole on each, {size:.2g} GiB"
    assert two.told[1] == f"units are divided over cpu, cpu; the base is {lies} (shard: {sharding})"
    assert two.shapes == one.shapes and two.told[-2:] == one.told[-2:]
    parts = {p.to_local().numel() / p.numel() for p in two.model.module.parameters() if isinstance(p, DTensor)}
    assert parts == ({0.5} if sharding == "on" else set())
    for drawn in (units(), units()[:1], units()[:0]):  # the second leaves a process nothing, and the last both of them
        expected, released = (
            dp_sgd_of(each, observer=seen.append).release(partial(list, drawn)) for each in (one, two)
        )
        np.testing.assert_array_equal(released, expected)
    assert np.abs(dp_sgd_of(one).sum_units(units())).sum() > 0
    alone, both = seen[:2]
    np.testing.assert_array_equal(np.sort(both.norms), np.sort(alone.norms))
    assert (both.records, both.tokens, both.signal) == (alone.records, alone.tokens, alone.signal)
    assert sum(both.batches.values()) > 1 and both.computed >= both.tokens


DealtTo = Callable[[Sequence[Any], int], list[list[Any]]]


def dealt_twice(deal: DealtTo) -> DealtTo:
    return lambda drawn, count: [[*share, deal(drawn, count)[0][-1]] for share in deal(drawn, count)]


def last_one_skipped(deal: DealtTo) -> DealtTo:
    return lambda drawn, count: [deal(drawn, count)[0], deal(drawn, count)[1][:-1]]


@pytest.mark.parametrize("broken", [dealt_twice, last_one_skipped])
def test_a_unit_that_is_dealt_twice_or_to_nobody_is_noticed(
    folder: Path, pair: Ranks, monkeypatch: pytest.MonkeyPatch, broken: Callable[[DealtTo], DealtTo]
) -> None:
    study = study_of()
    expected = dp_sgd_of(MachineSampler(study, loaded(folder, study))).sum_units(units())
    two = dp_sgd_of(on(pair, folder, study))
    np.testing.assert_array_equal(two.sum_units(units()), expected)
    monkeypatch.setattr(dp_sgd, "_dealt", broken(dp_sgd._dealt))
    assert not np.array_equal(two.sum_units(units()), expected)


class OfEveryRank:
    """What noise would be, were it drawn once by each of two processes."""

    noise_stddev = STDDEV

    def add_noise(self, total: Any) -> None:
        for _ in DEVICES:
            RoundedGaussian(noise_stddev=STDDEV).add_noise(total)


@pytest.mark.parametrize(
    ("mechanism", "is_right"), [(RoundedGaussian(noise_stddev=STDDEV), True), (OfEveryRank(), False)]
)
def test_noise_is_drawn_once_whatever_the_number_of_processes(
    folder: Path, pair: Ranks, mechanism: Mechanism, is_right: bool
) -> None:
    two = dp_sgd_of(on(pair, folder, study_of()), mechanism)
    dimension = two.lattice.dimension
    releases = -(-4000 // dimension)
    noise = np.concatenate([two.release(list) for _ in range(releases)]) / STDDEV
    # Of n squares of normal numbers the mean is 1 with a deviation of sqrt(2/n): 0.2 off is 9 of these, below 1e-18.
    assert (abs(np.mean(noise**2) - 1) < 0.2) == is_right, np.mean(noise**2)


def test_devices_that_compute_other_bits_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Ranks(devices=("cuda:0", "cuda:1"))
    monkeypatch.setattr(both, "everyones", lambda said: [said, said[::-1]])
    sampler = GradSampler(loaded(folder, study_of()), [Shape(MAX_TOKENS, 2)], ranks=both)
    with pytest.raises(ModelError, match="other bits on cuda:1 than on cuda:0"):
        check_alike(sampler)


def test_a_base_in_four_bits_is_not_sharded(folder: Path) -> None:
    with pytest.raises(ModelError, match="4 bits is not sharded"):
        shard(loaded(folder, study_of("nf4")), NO_MESH, torch.device("cpu"))


def a_process_that_says(*said: Any) -> Ranks:
    """Rank 0 of two, of which the other has said something and ended, or says nothing."""
    here, there = Pipe()
    for one in said:
        there.send(one)
    if said:
        there.close()
    LISTENING.append(there)
    return Ranks([here], devices=("cuda:0", "cuda:1"))


def test_what_a_process_cannot_begin_with_is_told_with_its_device() -> None:
    diagnosis = ("the model in /m is another than the study's", "every site has the same", "put it back")
    with pytest.raises(ModelError, match="cuda:1: the model in /m is another") as refusal:
        a_process_that_says(Failed(kind="StudyError", diagnosis=diagnosis)).everyones(0)
    assert (refusal.value.why, refusal.value.fix) == diagnosis[1:]


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ((), "has not answered for 0 minutes"),
        ((None,), "has ended"),
        ((Failed(kind="OutOfMemoryError"),), r"failed \(OutOfMemoryError\)"),
    ],
)
def test_a_process_that_ends_fails_or_is_silent_ends_all_in_whatever_way_it_is_waited_for(
    said: tuple[Any, ...], how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.0)
    waiting = a_process_that_says(*said)
    with pytest.raises(RankLost, match=f"computes on cuda:1 {how}"):
        for _ in range(2):
            waiting.add_up(np.zeros(4, dtype=np.int64), None)
    assert "cuda:1" in caplog.text, "the site's log says so"


def test_of_a_base_that_is_sharded_a_batch_that_fails_ends_all_and_its_words_are_told_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(RankLost) as lost, Ranks(devices=("cuda:0",)).batch():
        raise ValueError("Mrs Abernathy")
    assert "cuda:0 failed (ValueError)" in str(lost.value)
    assert "Abernathy" not in str(lost.value) + caplog.text


@pytest.mark.parametrize("failing", ["ask", "sum_share", "add_up"])
def test_what_fails_in_one_s_own_part_of_a_step_ends_all_and_is_not_taken_for_a_sum(
    folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = a_process_that_says(None)
    two_sampler = GradSampler(loaded(folder, study_of()), [Shape(MAX_TOKENS, 2)], ranks=two)
    monkeypatch.setattr(two, "ask", lambda orders: None)
    monkeypatch.setattr(DpSgd if failing == "sum_share" else two, failing, lambda *given: 1 // 0)
    with pytest.raises(RankLost, match="ZeroDivisionError"):
        dp_sgd_of(two_sampler).release(list)


# The last, since the other process is gone after it.
def test_a_process_that_is_killed_in_a_step_ends_all_and_nothing_is_released(
    folder: Path, pair: Ranks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two = dp_sgd_of(on(pair, folder, study_of()), RoundedGaussian(noise_stddev=STDDEV))
    own_part = DpSgd.sum_share

    def killed(self: DpSgd, *given: Any) -> Any:
        (other,) = active_children()
        os.kill(other.pid or 0, signal.SIGKILL)
        return own_part(self, *given)

    monkeypatch.setattr(DpSgd, "sum_share", killed)
    with pytest.raises(RankLost, match="computes on cpu has ended"):
        two.release(units)
    assert "all processes of the worker end" in caplog.text
