import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.mechanism import (
    Lattice,
    Mechanism,
    NoNoise,
    RoundedGaussian,
    honest_shares,
    site_noise_stddev,
)

SPECIAL = [np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**32, 2.0**62, 2.0**63, -(2.0**63), 2.0**64, 5e-324, 0.0, 1.0]


@pytest.mark.parametrize("threshold, corrupt_sites, shares", [(4, 1, 3), (4, 2, 2), (3, 1, 2), (34, 17, 17)])
def test_distributed_noise_counts_only_the_shares_the_adversary_cannot_know(
    threshold: int, corrupt_sites: int, shares: int
) -> None:
    assert honest_shares(trust="distributed", threshold=threshold, corrupt_sites=corrupt_sites) == shares


def test_a_site_in_local_trust_relies_on_its_own_noise() -> None:
    assert honest_shares(trust="local", threshold=4, corrupt_sites=3) == 1


@pytest.mark.parametrize("threshold, corrupt_sites", [(4, 3), (3, 2), (2, 2), (3, 5), (4, 0), (4, -1)])
def test_too_few_honest_shares_are_refused(threshold: int, corrupt_sites: int) -> None:
    with pytest.raises(PrivacyError, match="corrupt"):
        honest_shares(trust="distributed", threshold=threshold, corrupt_sites=corrupt_sites)


def _credits_enough(stddev: int, noise_multiplier: float, sensitivity: int, shares: int) -> bool:
    return stddev**2 * shares >= (Fraction(noise_multiplier) * sensitivity) ** 2


@given(st.floats(0.3, 50), st.integers(300, 10**6), st.integers(1, 50))
def test_the_honest_shares_together_reach_the_noise_and_are_the_least_that_do(
    noise_multiplier: float, sensitivity: int, shares: int
) -> None:
    try:
        stddev = site_noise_stddev(noise_multiplier=noise_multiplier, sensitivity=sensitivity, honest_shares=shares)
    except PrivacyError:
        assert _credits_enough(63, noise_multiplier, sensitivity, shares)
        return
    assert _credits_enough(stddev, noise_multiplier, sensitivity, shares)
    assert not _credits_enough(stddev - 1, noise_multiplier, sensitivity, shares)


@pytest.mark.parametrize(
    "broken",
    [
        lambda z, sensitivity, h, n: math.ceil(z * sensitivity / math.sqrt(n)),  # every site's noise taken for unknown
        lambda z, sensitivity, h, n: math.ceil(z * sensitivity / h),  # deviations added where variances add
        lambda z, sensitivity, h, n: math.ceil(math.sqrt(z * sensitivity / h)),  # the variance taken for the deviation
        lambda z, sensitivity, h, n: math.ceil(z / math.sqrt(h)),  # the sensitivity forgotten
        lambda z, sensitivity, h, n: math.floor(z * sensitivity / math.sqrt(h)),
    ],
)
def test_a_wrong_share_of_the_noise_is_too_little(broken: Callable[[float, int, int, int], int]) -> None:
    assert not _credits_enough(broken(1.63, 8268, 3, 5), 1.63, 8268, 3)


@pytest.mark.parametrize(
    "noise_multiplier, sensitivity", [(0.0, 100), (-1.0, 100), (math.nan, 100), (math.inf, 100), (1.0, 0), (1e9, 10**6)]
)
def test_noise_that_cannot_be_added_is_refused(noise_multiplier: float, sensitivity: int) -> None:
    with pytest.raises(PrivacyError):
        site_noise_stddev(noise_multiplier=noise_multiplier, sensitivity=sensitivity, honest_shares=2)


def test_noise_below_the_proved_range_is_refused() -> None:
    assert site_noise_stddev(noise_multiplier=1.0, sensitivity=64, honest_shares=1) == 64
    with pytest.raises(PrivacyError, match="63"):
        site_noise_stddev(noise_multiplier=1.0, sensitivity=63, honest_shares=1)


@given(st.integers(1, 10**8), st.floats(1e-6, 1e6))
def test_the_scale_is_the_least_power_of_two_and_the_sensitivity_covers_every_rounding(
    dimension: int, clipping_norm: float
) -> None:
    lattice = Lattice(dimension=dimension, clipping_norm=clipping_norm)
    reach = Fraction(lattice.scale) * Fraction(clipping_norm)
    assert math.frexp(lattice.scale)[0] == 0.5
    assert reach**2 >= 2500 * dimension
    assert (reach / 2) ** 2 < 2500 * dimension
    rounding = lattice.sensitivity - reach  # sensitivity >= s C + sqrt(d) / 2
    assert rounding > 0
    assert 4 * rounding**2 >= dimension
    assert lattice.sensitivity <= float(reach) * 1.01 + 2


def test_a_lattice_of_the_built_in_model() -> None:
    lattice = Lattice(dimension=23_040, clipping_norm=0.5)
    assert (lattice.scale, lattice.sensitivity) == (16384.0, 8268)  # 50 sqrt(d) = 7589 <= 8192; + 75.9


@pytest.mark.parametrize("dimension, norm", [(0, 1.0), (-1, 1.0), (5, 0.0), (5, -1.0), (5, math.nan), (5, math.inf)])
def test_a_lattice_without_resolution_is_refused(dimension: int, norm: float) -> None:
    with pytest.raises(PrivacyError):
        Lattice(dimension=dimension, clipping_norm=norm)


def _has_the_credited_variance(sites: list[Mechanism], credited_stddev: float) -> bool:
    """Whether the sum of the sites' noise has at least the credited variance; false alarm below 1e-8."""
    total = np.zeros(200_000, dtype=np.int64)
    for site in sites:
        site.add_noise(total)
    return bool(np.sum((total / credited_stddev) ** 2) > chi2.ppf(1e-8, len(total)))


def test_the_honest_shares_of_a_sum_have_the_credited_variance() -> None:
    stddev = site_noise_stddev(noise_multiplier=1.63, sensitivity=8268, honest_shares=3)
    site = RoundedGaussian(noise_stddev=stddev)
    assert _has_the_credited_variance([site] * 3, 1.63 * 8268)
    assert not _has_the_credited_variance([site] * 2, 1.63 * 8268)  # one share missing
    assert not _has_the_credited_variance([site, site, NoNoise()], 1.63 * 8268)  # one site forgot
    shares_of_all = RoundedGaussian(noise_stddev=math.ceil(1.63 * 8268 / math.sqrt(5)))
    assert not _has_the_credited_variance([shares_of_all] * 3, 1.63 * 8268)  # h taken as n


def test_noise_is_independent_in_every_call() -> None:
    mechanism = RoundedGaussian(noise_stddev=1 << 30)
    first, second = np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64)
    mechanism.add_noise(first)
    mechanism.add_noise(second)
    assert np.sum(first == second) < 3


def test_no_noise_leaves_the_sum_as_it_is() -> None:
    total = np.arange(10, dtype=np.int64)
    NoNoise().add_noise(total)
    assert total.tolist() == list(range(10))
    assert NoNoise().noise_stddev == 0


@pytest.mark.parametrize("stddev", [0, 63, (1 << 30) + 1, 100.0, math.nan])
def test_a_mechanism_outside_the_proved_range_cannot_be_made(stddev: int) -> None:
    with pytest.raises(PrivacyError):
        RoundedGaussian(noise_stddev=stddev)
