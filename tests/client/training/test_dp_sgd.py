import logging
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.study.numpy_lattice import integers_of
from support.study.tiny_models import POSITIONS, VOCABULARY, example_of, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.step_figures import StepFigures
from grandrounds.common.errors import ModelError
from grandrounds.common.model.example import Example
from grandrounds.common.model.optimizers import make_optimizer
from grandrounds.common.privacy.mechanism import Lattice, NoNoise, RoundedGaussian

TOKENS = 16
CLIPPING_NORM = 0.5
STDDEV = 1000
HOSTILE_TOKEN = 200  # its embedding is infinite, so that a record which holds it has no finite gradient
RNG = np.random.default_rng(11)


def record(length=TOKENS):
    example = tiny_example(RNG, length=length, max_tokens=TOKENS)
    example.token_ids[example.token_ids == HOSTILE_TOKEN] = 0
    example.token_ids[length:] = 0
    example.labels[example.labels == HOSTILE_TOKEN] = 0
    return example


def with_token(token):
    example = record()
    example.token_ids[1] = token
    return example


class Unreadable:
    """A unit whose records raise when they are read, with a patient's name in the message."""

    def __iter__(self):
        raise OSError("no page for Mrs Abernathy")


UNITS = [
    [record()],
    [record(5), record(9)],
    [record(), record(3), record(7)],
    [record(2)],
    [record() for _ in range(6)],
]
FAILING: list[Any] = [
    [with_token(VOCABULARY)],  # no such token: the batch raises
    [record(), with_token(VOCABULARY), record()],
    [with_token(HOSTILE_TOKEN)],
    [record(), with_token(HOSTILE_TOKEN)],
    [example_of(np.zeros(POSITIONS, np.int32), np.zeros(POSITIONS, np.int32))],  # another length
    [None],
    Unreadable(),
    [],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))
    model.module.get_input_embeddings().weight.data[HOSTILE_TOKEN] = float("inf")
    return model


@pytest.fixture(autouse=True)
def attach_the_same_adapter(model):
    adapter = model.get_adapter()
    yield
    model.set_adapter(adapter)


def dp_sgd(model, mechanism=None, *, batch_size=4):
    lattice = Lattice(dimension=model.layout.dimension, clipping_norm=CLIPPING_NORM)
    sampler = GradSampler(model, [Shape(TOKENS, batch_size)])
    return DpSgd(sampler=sampler, lattice=lattice, mechanism=mechanism or NoNoise())


def unit_gradients(model, units):
    """Each unit's gradient, the plain way: the mean of its records', in double precision."""
    sampler = GradSampler(model, [Shape(TOKENS, 8)])
    return [sampler.gradients(unit).double().mean(dim=0).numpy() for unit in units]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 32])
def test_the_sum_without_noise_is_the_plain_clipped_sum_to_the_lattice_s_resolution(model, batch_size):
    dp = dp_sgd(model, batch_size=batch_size)
    gradients = unit_gradients(model, UNITS)
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    assert max(norms) > CLIPPING_NORM, "some unit must need clipping"
    clipped = sum(g * min(1.0, CLIPPING_NORM / norm) for g, norm in zip(gradients, norms, strict=True))
    released = dp.lattice.decode(dp.release(lambda: UNITS))
    resolution = len(UNITS) * 0.5 / dp.lattice.scale
    # Other batch sizes change a float32 gradient by rounding.
    assert np.abs(released - clipped).max() <= resolution + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.sampled_from(UNITS + FAILING), max_size=6),
    unit=st.sampled_from(UNITS + FAILING),
    place=st.integers(0, 6),
)
def test_adding_a_unit_adds_its_own_integers_and_nothing_else(model, units, unit, place):
    dp = dp_sgd(model)
    place = min(place, len(units))
    change = dp.sum_units([*units[:place], unit, *units[place:]]) - dp.sum_units(units)
    np.testing.assert_array_equal(change, dp.sum_units([unit]))
    assert int(np.dot(change, change)) <= dp.lattice.sensitivity**2
    assert change.any() == any(unit is sound for sound in UNITS)


class OneFailureEmptiesTheBatch(DpSgd):
    def _gradient_alone(self, example):
        return torch.full((1, self.lattice.dimension), torch.nan)


def test_a_failing_record_leaves_its_site_s_step_as_it_was_without_its_unit(model, caplog):
    dp = dp_sgd(model)
    np.testing.assert_array_equal(
        dp.release(lambda: [UNITS[0], *FAILING, UNITS[1]]), dp.release(lambda: [UNITS[0], UNITS[1]])
    )
    assert "Abernathy" not in caplog.text


def test_nothing_in_a_step_is_logged_that_counts_the_units_which_failed(model, caplog):
    caplog.set_level(logging.DEBUG)
    dp = dp_sgd(model)
    dp.sum_units([UNITS[0], *FAILING, UNITS[1]])
    assert not [one for one in caplog.records if one.name.startswith("grandrounds")]


class FailsOverSome(GradSampler):
    """Raises over a batch with a certain record, with a patient's name in the message."""

    hated: Example

    def gradients(self, examples):
        if any(example is self.hated for example in examples):
            raise ArithmeticError("Mrs Abernathy's gradient")
        return super().gradients(examples)


def failing_over(dp, example):
    sampler = FailsOverSome(dp.sampler.model, dp.sampler.shapes)
    sampler.hated = example
    return sampler


def test_a_record_over_which_a_library_raises_costs_its_unit_alone(model, caplog):
    dp = dp_sgd(model)
    for at_fault in (1, 2):
        others = [unit for number, unit in enumerate(UNITS) if number != at_fault]
        failing = DpSgd(sampler=failing_over(dp, UNITS[at_fault][-1]), lattice=dp.lattice, mechanism=dp.mechanism)
        np.testing.assert_array_equal(failing.release(lambda: UNITS), dp.sum_units(others))
    assert "Abernathy" not in caplog.text


def test_a_failure_that_reaches_its_neighbours_is_noticed(model):
    dp = dp_sgd(model)
    sampler = failing_over(dp, UNITS[3][0])
    broken = OneFailureEmptiesTheBatch(sampler=sampler, lattice=dp.lattice, mechanism=dp.mechanism)
    assert not np.array_equal(broken.sum_units(UNITS), dp.sum_units([*UNITS[:3], UNITS[4]]))


class InfiniteBothWays(DpSgd):
    """The first unit's two records have opposite infinities, so that their sum is an invalid operation."""

    def _isolated_gradients(self, examples):
        sound = super()._isolated_gradients(examples[2:])
        return torch.cat(
            [torch.full((1, self.lattice.dimension), value) for value in (torch.inf, -torch.inf)] + [sound]
        )


def test_infinities_that_cancel_cost_their_unit_alone(model):
    dp = dp_sgd(model, batch_size=16)
    hostile = InfiniteBothWays(sampler=dp.sampler, lattice=dp.lattice, mechanism=dp.mechanism)
    released = hostile.release(lambda: [[record(), record()], UNITS[0], UNITS[1]])
    np.testing.assert_array_equal(released, dp.sum_units([UNITS[0], UNITS[1]]))


def test_a_unit_s_records_of_several_lengths_add_the_same_whoever_else_is_drawn(model):
    """Shapes are filled by whoever is drawn; the order in which a unit's gradients are added is its own."""
    lengths = (6, 10, TOKENS)
    dp = DpSgd(
        sampler=GradSampler(model, [Shape(length, 3) for length in lengths]),
        lattice=Lattice(dimension=model.layout.dimension, clipping_norm=CLIPPING_NORM),
        mechanism=NoNoise(),
    )
    sized = [[tiny_example(RNG, length=length - 1, max_tokens=length) for length in RNG.permutation(lengths)]] * 1
    sized += [[tiny_example(RNG, length=5, max_tokens=6)], *sized, [tiny_example(RNG, length=9, max_tokens=10)] * 2]
    alone = [dp.sum_units([unit]) for unit in sized]
    assert all(one.any() for one in alone)
    np.testing.assert_array_equal(dp.sum_units(sized), sum(alone))
    np.testing.assert_array_equal(dp.sum_units(sized[::-1]), sum(alone))
    mean = torch.cat([dp.sampler.gradients([one]) for one in sized[0]]).double().mean(dim=0)
    assert dp.norms(sized)[0] == pytest.approx(float(mean.norm()), rel=1e-5)


@pytest.mark.parametrize("most", [1, 7])
def test_how_many_units_are_worked_on_at_a_time_changes_nothing(model, most, monkeypatch):
    dp = dp_sgd(model)
    expected = dp.sum_units(UNITS)
    monkeypatch.setattr("grandrounds.client.training.dp_sgd._MOST_RECORDS", most)
    np.testing.assert_array_equal(dp.sum_units(UNITS), expected)
    monkeypatch.setattr("grandrounds.client.training.dp_sgd._MOST_BYTES", 1)
    np.testing.assert_array_equal(dp.sum_units(UNITS), expected)


def plausible_noise(values, stddev):
    """Whether ``values`` may be pure noise of this deviation; a sound mechanism is called implausible once in 1e7."""
    square = float(np.square(values / stddev).sum())
    low, high = stats.chi2(values.size).ppf([0.5e-7, 1 - 0.5e-7])
    return low < square < high


def broken_draw():
    yield UNITS[0]
    raise OSError("disk failed at Mrs Abernathy")


@pytest.mark.parametrize("draw", [list, broken_draw, lambda: 1 / 0])
def test_an_empty_draw_or_one_that_cannot_be_read_is_released_as_pure_noise(model, draw, caplog):
    assert not dp_sgd(model).release(draw).any()
    noise = dp_sgd(model, RoundedGaussian(noise_stddev=STDDEV)).release(draw)
    assert plausible_noise(noise, STDDEV), noise.tolist()
    assert "Abernathy" not in caplog.text


def test_forgotten_noise_is_noticed(model):
    assert not plausible_noise(dp_sgd(model).release(list), STDDEV)


def test_noise_is_added_once_to_the_sum_and_drawn_anew_each_time(model):
    dp = dp_sgd(model, RoundedGaussian(noise_stddev=STDDEV))
    total = dp.sum_units(UNITS)
    one, two = (dp.release(lambda: UNITS) - total for _ in range(2))
    assert plausible_noise(one, STDDEV), one.tolist()
    assert plausible_noise(one - two, STDDEV * np.sqrt(2)), (one - two).tolist()


LENGTHS = [[16], [5, 9], [16, 3, 7], [2], [16] * 6]  # of UNITS


@pytest.mark.parametrize("noise", [NoNoise(), RoundedGaussian(noise_stddev=STDDEV)])
def test_who_looks_on_is_told_what_was_computed_exactly(model, noise):
    seen: list[StepFigures] = []
    dp = replace(dp_sgd(model, noise), observer=seen.append)
    dp.release(lambda: [*UNITS, *FAILING[:1], Unreadable()])
    (figures,) = seen
    norms = [float(np.linalg.norm(gradient)) for gradient in unit_gradients(model, UNITS)]
    assert figures.norms.tolist() == pytest.approx([*norms, np.nan, np.nan], nan_ok=True)
    assert (figures.clipping_norm, figures.records, figures.tokens) == (CLIPPING_NORM, 13, sum(map(sum, LENGTHS)))
    assert (figures.batches, figures.computed) == ({"4 x 16": 4}, 4 * 4 * 16)
    assert figures.signal == pytest.approx(np.linalg.norm(dp.lattice.decode(dp.sum_units(UNITS))))
    assert figures.noise == pytest.approx(noise.noise_stddev * np.sqrt(dp.lattice.dimension) / dp.lattice.scale)
    assert figures.seconds >= figures.gradients_s + figures.sums_s + figures.noise_s > 0 < figures.gradients_s


def broken_observer(figures):
    figures.norms[:] = 0.0
    raise OSError("no space for Mrs Abernathy")


@pytest.mark.parametrize("units", [UNITS, [], [*UNITS, *FAILING]])
def test_whoever_looks_on_changes_no_bit_of_what_is_released(model, units, caplog):
    unseen = dp_sgd(model).release(lambda: units)
    for observer in (lambda figures: None, broken_observer):
        seen = replace(dp_sgd(model), observer=observer).release(lambda: units)
        np.testing.assert_array_equal(seen, unseen)
    assert caplog.messages == ["nobody is told of this step (OSError)"]


def test_a_release_in_residues_is_the_release_modulo_2_to_the_32(model):
    dp = dp_sgd(model)
    in_residues = replace(dp, integers=np.dtype("<u4"))
    released = in_residues.release(lambda: [*UNITS, *FAILING])
    assert released.dtype == np.dtype("<u4")
    np.testing.assert_array_equal(released, dp.sum_units(UNITS).astype("<u4"))
    in_residues = replace(in_residues, mechanism=RoundedGaussian(noise_stddev=STDDEV))
    noise = (in_residues.release(lambda: UNITS) - released).view(np.int32)
    assert plausible_noise(noise, STDDEV), noise.tolist()


def test_the_noised_sum_is_not_clipped(model):
    stddev = 100 * dp_sgd(model).lattice.sensitivity
    released = dp_sgd(model, RoundedGaussian(noise_stddev=stddev)).release(lambda: UNITS)
    assert plausible_noise(released, stddev), released.tolist()
    lattice = dp_sgd(model).lattice
    clipped = integers_of(lattice, (released / lattice.scale).astype(np.float32))
    assert not plausible_noise(clipped, stddev)


def test_one_local_step_divides_by_the_public_denominator_and_steps(model):
    dp = dp_sgd(model)
    adapter = model.get_adapter()
    change = dp.train(
        lambda: UNITS,
        adapter=adapter,
        optimizer=make_optimizer("sgd", learning_rate=0.1),
        steps=1,
        denominator=8.0,  # not the five units of the draw
    )
    model.set_adapter(adapter)
    expected = -0.1 * dp.lattice.decode(dp.sum_units(UNITS)) / 8.0
    np.testing.assert_allclose(change, expected, rtol=0, atol=1e-12)
    assert change.any()


def test_each_local_step_has_its_own_draw_at_the_adapter_of_the_step_before(model):
    dp = dp_sgd(model)
    adapter = model.get_adapter()
    draws = [UNITS[:2], [], UNITS[3:]]
    remaining = iter(draws)
    change = dp.train(
        lambda: next(remaining),
        adapter=adapter,
        optimizer=make_optimizer("sgd", learning_rate=0.1),
        steps=3,
        denominator=2.0,
    )
    assert next(remaining, None) is None
    parameters = adapter.astype(np.float64)
    for draw in draws:
        model.set_adapter(parameters.astype(np.float32))
        parameters = parameters - 0.1 * dp.lattice.decode(dp.sum_units(draw)) / 2.0
    np.testing.assert_array_equal(change, parameters - adapter.astype(np.float64))
    model.set_adapter(adapter)
    reused = dp.train(
        lambda: draws[0],
        adapter=adapter,
        optimizer=make_optimizer("sgd", learning_rate=0.1),
        steps=3,
        denominator=2.0,
    )
    assert not np.array_equal(reused, change), "a draw that is reused must show"


def test_units_are_read_some_at_a_time(model, monkeypatch):
    monkeypatch.setattr("grandrounds.client.training.dp_sgd._MOST_RECORDS", 6)
    alive: weakref.WeakSet[Example] = weakref.WeakSet()
    most = 0

    def draw():
        nonlocal most
        for _ in range(40):
            example = record()
            alive.add(example)
            most = max(most, len(alive))
            yield [example]
            del example

    dp_sgd(model).sum_units(draw())
    assert most <= 2 * 6 + 2


def test_a_lattice_of_another_dimension_is_refused(model):
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    lattice = Lattice(dimension=model.layout.dimension + 1, clipping_norm=CLIPPING_NORM)
    with pytest.raises(ModelError):
        DpSgd(sampler=sampler, lattice=lattice, mechanism=NoNoise())
