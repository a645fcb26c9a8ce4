import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.study.numpy_lattice import TREE, integers_of, norm_of

from grandrounds.client.training import unit_sum
from grandrounds.client.training.unit_sum import UnitSum
from grandrounds.common.privacy import clipping
from grandrounds.common.privacy.mechanism import Lattice

CPU = torch.device("cpu")
LATTICE = Lattice(dimension=7, clipping_norm=1.5)
AUTOMATIC = replace(LATTICE, clipping="auto")
RNG = np.random.default_rng(4)
any_float32 = st.integers(0, 2**32 - 1).map(lambda bits: struct.unpack("f", struct.pack("I", bits))[0])
rows = st.lists(st.lists(any_float32 | st.floats(-3, 3, width=32), min_size=7, max_size=7), min_size=1, max_size=4)


def summed(lattice: Lattice, gradients: NDArray[np.float32], kind: type[UnitSum] = UnitSum) -> NDArray[np.int64]:
    total = kind(lattice, CPU)
    total.add(torch.from_numpy(gradients.copy()))
    return total.total


def long_rows(count: int, dimension: int) -> NDArray[np.float32]:
    magnitudes = 10.0 ** RNG.uniform(-6, 1, (count, dimension))
    return (magnitudes * RNG.standard_normal((count, dimension))).astype(np.float32)


@given(rows, st.sampled_from([LATTICE, AUTOMATIC]))
def test_whatever_the_units_are_their_integers_are_those_of_numpy_and_each_is_bounded(
    units: list[list[float]], lattice: Lattice
) -> None:
    gradients = np.array(units, dtype=np.float32)
    each = [integers_of(lattice, gradient) for gradient in gradients]
    assert all(sum(int(v) ** 2 for v in one) <= lattice.sensitivity**2 for one in each)
    np.testing.assert_array_equal(summed(lattice, gradients), np.sum(each, axis=0))


@settings(max_examples=25)
@given(rows, st.integers(-(2**31), 2**31 - 1))
def test_a_sum_in_32_bits_is_the_sum_modulo_2_to_the_32(units: list[list[float]], before: int) -> None:
    gradients = np.array(units, dtype=np.float32)
    total = UnitSum(LATTICE, CPU, bits=32)
    total._total.fill_(before)
    total.add(torch.from_numpy(gradients.copy()))
    assert total.total.dtype == np.int32
    assert np.array_equal(total.total.view(np.uint32), (summed(LATTICE, gradients) + before).astype(np.uint32))


@pytest.mark.parametrize("dimension", [1, TREE - 1, TREE, TREE + 1, 5 * TREE + 77])
def test_long_units_are_those_of_numpy_to_the_last_bit_whatever_is_worked_on_at_a_time(
    dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lattice = Lattice(dimension=dimension, clipping_norm=0.5)
    gradients = long_rows(3, dimension)
    expected = np.sum([integers_of(lattice, gradient) for gradient in gradients], axis=0)
    assert expected.any()
    for at_a_time in (1, 2 * TREE, 1 << 20):
        monkeypatch.setitem(unit_sum._AT_A_TIME, "cpu", at_a_time)
        np.testing.assert_array_equal(summed(lattice, gradients), expected)


def test_norms_are_those_before_clipping_in_an_order_that_no_thread_changes() -> None:
    dimension = 40 * TREE + 5
    lattice, gradients = Lattice(dimension=dimension, clipping_norm=0.5), long_rows(2, dimension)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(UnitSum(lattice, CPU).add(torch.from_numpy(gradients.copy())).tolist())
    finally:
        torch.set_num_threads(threads)
    assert found == [[norm_of(gradient) for gradient in gradients]] * 3
    np.testing.assert_allclose(found[0], np.linalg.norm(gradients.astype(np.float64), axis=1), rtol=1e-12)


def test_a_unit_adds_the_same_alone_and_among_others() -> None:
    lattice = Lattice(dimension=3 * TREE, clipping_norm=0.5)
    gradients = long_rows(4, 3 * TREE)
    gradients[1, 5] = np.nan
    together = summed(lattice, gradients)
    np.testing.assert_array_equal(together, sum(summed(lattice, gradient[None]) for gradient in gradients))
    assert not summed(lattice, gradients[1:2]).any()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17_000, 39_999])
def test_a_unit_that_is_not_finite_anywhere_counts_as_zero(special: float, place: int) -> None:
    lattice = Lattice(dimension=40_000, clipping_norm=1.5)
    gradient = np.full((1, 40_000), 1e-4, dtype=np.float32)
    assert summed(lattice, gradient).any()
    gradient[0, place] = special
    assert not summed(lattice, gradient).any()


def test_the_sum_is_the_clipped_sum_to_the_lattice_s_resolution() -> None:
    lattice = Lattice(dimension=30_000, clipping_norm=0.7)
    units = (RNG.standard_normal((20, 30_000)) * np.linspace(1e-4, 1e-1, 20)[:, None]).astype(np.float32)
    plain = sum(unit * min(1.0, 0.7 / np.linalg.norm(unit)) for unit in units.astype(np.float64))
    assert np.abs(lattice.decode(summed(lattice, units)) - plain).max() <= 20 * 0.5 / lattice.scale * (1 + 1e-9)


def test_a_short_unit_is_not_scaled_and_a_zero_one_adds_nothing() -> None:
    lattice = Lattice(dimension=3, clipping_norm=1.0)
    steps = np.array([[3.0, -4.0, 0.0]], dtype=np.float32) / np.float32(lattice.scale)
    assert summed(lattice, steps).tolist() == [3, -4, 0]
    assert not summed(lattice, np.zeros((1, 3), dtype=np.float32)).any()


@pytest.mark.parametrize("length", [1e-30, 1e-3, 0.5, 1e3, 1e30])
def test_automatic_clipping_brings_a_unit_near_the_norm_by_the_published_factor(length: float) -> None:
    lattice = Lattice(dimension=2, clipping_norm=2.0, clipping="auto")
    (clipped,) = lattice.decode(summed(lattice, np.array([[0.6, -0.8]], dtype=np.float32) * np.float32(length))[None])
    # Bu et al. 2023: g · C / (‖g‖ + γ), γ = 0.01.
    np.testing.assert_allclose(clipped, np.array([1.2, -1.6]) * length / (length + 0.01), atol=0.5 / lattice.scale)


def test_automatic_clipping_that_divides_by_too_little_is_caught_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = np.array([[0.3, -0.4] + [0.0] * 5], dtype=np.float32)
    assert summed(AUTOMATIC, unit).any()
    monkeypatch.setattr(clipping, "STABILITY", -0.25)
    assert not summed(AUTOMATIC, unit).any()


class WithoutClipping(UnitSum):
    """Takes every row for a short one, so that the check alone is left."""

    def _norms(self, gradients: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(gradients), dtype=torch.float64)


def test_the_bound_rests_on_the_exact_check_alone() -> None:
    lattice = Lattice(dimension=40_000, clipping_norm=1.5)
    inside = np.full((1, 40_000), 1.5 / 200, dtype=np.float32)
    assert summed(lattice, inside, WithoutClipping).any()
    assert not summed(lattice, 1.02 * inside, WithoutClipping).any()


class ChecksEachNumber(WithoutClipping):
    """Compares each integer with the bound, and not their norm."""

    def add(self, gradients: torch.Tensor) -> torch.Tensor:
        integers = gradients.double().mul(self._lattice.scale).round()
        self._total += torch.where(integers.abs() <= self._lattice.sensitivity, integers, 0.0).to(torch.int64).sum(0)
        return self._norms(gradients)


class ChecksInInt64(WithoutClipping):
    """Adds squares in int64, where 2^32 squared is 0."""

    def add(self, gradients: torch.Tensor) -> torch.Tensor:
        integers = gradients.double().mul(self._lattice.scale).round().to(torch.int64)
        within = integers.square().sum(dim=1) <= self._lattice.sensitivity**2
        self._total += torch.where(within[:, None], integers, 0).sum(0)
        return self._norms(gradients)


class RefusesWhatIsLonger(WithoutClipping):
    """Lets pass what is not found longer than the bound: NaN is not."""

    def add(self, gradients: torch.Tensor) -> torch.Tensor:
        integers = gradients.double().mul(self._lattice.scale).round()
        longer = integers.square().sum(dim=1) > self._lattice.sensitivity**2
        self._total += torch.where(longer[:, None], 0.0, integers).to(torch.int64).sum(0)
        return self._norms(gradients)


ATTACKS = np.array([[np.nan] * 7, [2.0**26] * 7, [1.4] * 7, [np.inf] + [0.0] * 6], dtype=np.float32)


@pytest.mark.parametrize("kind", [ChecksEachNumber, ChecksInInt64, RefusesWhatIsLonger])
def test_a_weaker_check_lets_an_attack_through(kind: type[UnitSum]) -> None:
    def stays_within(check: type[UnitSum]) -> Callable[[NDArray[np.float32]], bool]:
        return lambda attack: sum(int(v) ** 2 for v in summed(LATTICE, attack[None], check)) <= LATTICE.sensitivity**2

    assert not all(map(stays_within(kind), ATTACKS))
    assert all(map(stays_within(WithoutClipping), ATTACKS))
    assert all(map(stays_within(UnitSum), ATTACKS))


def test_every_integer_that_passes_is_held_by_the_gradient_s_own_type() -> None:
    for norm in (2.0**-40, 0.3, 2.0**40):
        assert Lattice(dimension=1 << 32, clipping_norm=norm).sensitivity < 1 << 23
