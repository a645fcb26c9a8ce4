import json
import math

import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.special import log_ndtr, ndtr
from scipy.stats import binom
from support.places import VECTORS
from support.study.closed_form import gaussian_epsilon, noise_sum_slack

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.accountant import Epsilon, calibrate_noise_multiplier, epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.trust import Trust

KNOWN = json.loads((VECTORS / "accountant.json").read_text())
CASES = KNOWN["cases"]
TOLERANCE = KNOWN["relative_tolerance"]


def _schedule(q: float, z: float, steps: int, trust: Trust = "distributed", m: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    return Schedule(event=event, count=steps)


def _epsilon(q: float, z: float, steps: int, delta: float, trust: Trust = "distributed", m: int = 1) -> Epsilon:
    return epsilon(_schedule(q, z, steps, trust, m), delta=delta)


def _interval(found: Epsilon) -> float:
    return float(found.accountant.split("interval ")[1].split(",")[0])


@pytest.mark.parametrize("q, z, steps, delta, trust, m, expected", CASES)
def test_epsilon_agrees_with_the_published_libraries(
    q: float, z: float, steps: int, delta: float, trust: Trust, m: int, expected: float
) -> None:
    result = _epsilon(q, z, steps, delta, trust, m)
    assert result.epsilon == pytest.approx(expected, rel=TOLERANCE)
    if trust == "distributed" and m > 1:
        assert result.epsilon_rdp is None
    else:
        assert result.epsilon_rdp is not None
        assert result.epsilon <= result.epsilon_rdp <= 1.5 * result.epsilon
    assert "PLD" in result.accountant
    assert "dp_accounting" in result.accountant


@pytest.mark.parametrize("q, z, steps, delta", [(0.01, 1.0, 1000, 1e-5), (0.1, 2.0, 300, 1e-5), (0.4, 1.9, 24, 5e-4)])
def test_epsilon_lies_within_the_bounds_of_opacus_prv(q: float, z: float, steps: int, delta: float) -> None:
    from opacus.accountants import PRVAccountant  # it loads torch

    prv = PRVAccountant()
    prv.history = [(z, q, steps)]
    error = 0.01
    upper = prv.get_epsilon(delta, eps_error=error, delta_error=delta / 1000)  # true epsilon is within 2 errors below
    assert upper - 2 * error <= _epsilon(q, z, steps, delta).epsilon <= upper + error


@pytest.mark.parametrize("z, steps", [(0.8, 1), (2.0, 7), (10.0, 100), (1.0, 20), (30.0, 24)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_without_sampling_epsilon_is_the_closed_form_and_never_below(z: float, steps: int, delta: float) -> None:
    if ndtr(math.sqrt(steps) / z / 2) - ndtr(-math.sqrt(steps) / z / 2) <= delta:
        return  # epsilon is 0
    truth = gaussian_epsilon(math.sqrt(steps) / z, delta)
    ours = _epsilon(1.0, z, steps, delta).epsilon
    assert truth * (1 - 1e-9) <= ours <= truth * 1.001 + 1e-6


@pytest.mark.parametrize("m", [2, 5])
def test_without_sampling_overlap_multiplies_the_sensitivity_or_the_count(m: int) -> None:
    distributed = _epsilon(1.0, 10.0, 50, 1e-5, "distributed", m)
    assert distributed.epsilon == pytest.approx(gaussian_epsilon(m * math.sqrt(50) / 10, 1e-5), rel=1e-3)
    local = _epsilon(1.0, 10.0, 50, 1e-5, "local", m)
    assert local.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(m * 50) / 10, 1e-5), rel=1e-3)


def test_without_amplification_the_same_schedule_costs_that_of_a_known_participant() -> None:
    schedule = _schedule(0.3, 10.0, 50, "local", 2)
    unamplified = epsilon(schedule.without_amplification(), delta=1e-5).epsilon
    assert unamplified == pytest.approx(gaussian_epsilon(math.sqrt(100) / 10, 1e-5), rel=1e-3)
    assert unamplified > epsilon(schedule, delta=1e-5).epsilon


def test_replacing_a_patient_moves_the_sum_twice_as_far_and_has_no_renyi_figure() -> None:
    replaced = epsilon(_schedule(1.0, 10.0, 50), delta=1e-5, relation="replace_one")
    assert replaced.epsilon == pytest.approx(gaussian_epsilon(2 * math.sqrt(50) / 10, 1e-5), rel=1e-3)
    assert replaced.epsilon_rdp is None
    sampled = epsilon(_schedule(0.1, 2.0, 50), delta=1e-5, relation="replace_one").epsilon
    assert sampled > _epsilon(0.1, 2.0, 50, 1e-5).epsilon


def test_replacing_a_patient_of_several_sites_under_distributed_trust_is_refused() -> None:
    with pytest.raises(PrivacyError, match="replace-one"):
        epsilon(_schedule(0.1, 5.0, 50, "distributed", 2), delta=1e-5, relation="replace_one")


def test_epsilon_falls_as_delta_grows() -> None:
    curve = [_epsilon(0.3, 2.0, 20, delta).epsilon for delta in (1e-6, 1e-5, 1e-4, 1e-3)]
    assert curve == sorted(set(curve), reverse=True)


def test_a_hopeless_epsilon_is_still_bounded_at_a_coarser_interval() -> None:
    result = _epsilon(1.0, 0.5, 100, 1e-5)
    truth = gaussian_epsilon(20.0, 1e-5)
    assert truth <= result.epsilon <= truth * 1.001
    assert _interval(result) > _interval(_epsilon(1.0, 1.0, 10, 1e-5))


@pytest.mark.parametrize("z", [0.414, 0.416, 0.418, 0.42])
def test_an_epsilon_at_which_the_library_overflows_is_still_bounded(z: float) -> None:
    truth = gaussian_epsilon(math.sqrt(200) / z, 1e-5)
    assert truth <= _epsilon(1.0, z, 200, 1e-5).epsilon <= truth * 1.002


def test_an_epsilon_that_promises_nothing_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"above 1e\+06"):
        _epsilon(1.0, 0.1, 100_000, 1e-5)


def test_a_patient_at_each_of_a_thousand_sites_has_a_figure() -> None:
    q, z, steps, delta = 0.01, 2.0, 100, 1e-5
    ours = _epsilon(q, z, steps, delta, "distributed", 1000).epsilon
    # An adversary who adds up all releases and takes someone for present above a threshold: a lower bound on epsilon.
    counts = np.arange(3000)
    total_stddev = z * math.sqrt(steps)
    thresholds = np.linspace(1000, 1300, 301)
    present = ndtr((counts - thresholds[:, None]) / total_stddev) @ binom.pmf(counts, 1000 * steps, q)
    gained = np.log(np.maximum(present - delta, 1e-300)) - log_ndtr(-thresholds / total_stddev)
    assert gained.max() <= ours <= 1.2 * gained.max()


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1e-13, 0.2, 1.0, math.nan])
def test_a_delta_outside_the_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        _epsilon(0.1, 1.0, 10, delta)


@pytest.mark.parametrize(
    "q, z, steps, trust, m",
    [
        (0.0, 1.0, 1, "local", 1),
        (1.1, 1.0, 1, "local", 1),
        (math.nan, 1.0, 1, "local", 1),
        (0.1, 0.0, 1, "local", 1),
        (0.1, math.nan, 1, "local", 1),
        (0.1, math.inf, 1, "local", 1),
        (0.1, 1.0, 0, "local", 1),
        (0.1, 1.0, 1, "local", 0),
        (0.1, 1.0, 1, "both", 1),
    ],
)
def test_an_event_that_cannot_be_is_refused(q: float, z: float, steps: int, trust: Trust, m: int) -> None:
    with pytest.raises(PrivacyError):
        _schedule(q, z, steps, trust, m)


@pytest.mark.parametrize(
    "target, delta, q, steps, trust, m",
    [
        (4.0, 5e-4, 0.4, 24, "distributed", 1),
        (4.0, 5e-4, 0.4, 24, "distributed", 2),
        (1.0, 1e-5, 0.01, 1000, "local", 2),
        (0.5, 1e-5, 1.0, 10, "distributed", 1),
    ],
)
def test_the_calibrated_noise_meets_the_target_and_hardly_less_would_not(
    target: float, delta: float, q: float, steps: int, trust: Trust, m: int
) -> None:
    z = calibrate_noise_multiplier(
        target_epsilon=target, delta=delta, sampling_probability=q, steps=steps, trust=trust, sites_per_patient=m
    )
    assert _epsilon(q, z, steps, delta, trust, m).epsilon <= target
    assert _epsilon(q, z * 0.999, steps, delta, trust, m).epsilon > target
    assert round(z, 4) == z


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match="reaches"):
        calibrate_noise_multiplier(
            target_epsilon=1e-4, delta=1e-9, sampling_probability=1.0, steps=100_000, trust="local"
        )


def test_a_target_that_the_least_noise_meets_gets_the_least_noise() -> None:
    least = calibrate_noise_multiplier(
        target_epsilon=1000.0, delta=1e-5, sampling_probability=0.5, steps=1, trust="local"
    )
    assert least == 0.1


def _rounded_gaussian_pmf(stddev: float, reach: int) -> np.ndarray:
    k = np.abs(np.arange(-reach, reach + 1))
    return ndtr((0.5 - k) / stddev) - ndtr((-0.5 - k) / stddev)


def _spline_rounded_pmf(stddev: float, shares: int, reach: int) -> np.ndarray:
    """N(0, stddev^2) rounded at random with the weights of ``shares`` uniforms: the post-processing of the claim."""
    knots = np.arange(shares + 1) - shares / 2
    spline = BSpline.basis_element(knots, extrapolate=False)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    pmf = np.zeros(2 * reach + 1)
    for left in knots[:-1]:
        offsets = left + (nodes + 1) / 2
        density = np.exp(-((np.arange(-reach, reach + 1)[:, None] - offsets) ** 2) / (2 * stddev**2))
        pmf += density @ (weights / 2 * spline(offsets)) / (stddev * math.sqrt(2 * math.pi))
    return pmf


@pytest.mark.parametrize("stddevs", [(0.5, 0.5), (1.2, 1.2), (0.6, 1.1), (0.7,) * 3, (0.6, 0.9, 1.2), (0.8,) * 4])
def test_a_sum_of_rounded_gaussians_is_a_rounded_gaussian_to_the_stated_factor(stddevs: tuple[float, ...]) -> None:
    reach = 6
    exact = np.ones(1)
    for stddev in stddevs:
        exact = np.convolve(exact, _rounded_gaussian_pmf(stddev, 40))
    middle = len(exact) // 2
    exact = exact[middle - reach : middle + reach + 1]
    claimed = _spline_rounded_pmf(math.sqrt(sum(s * s for s in stddevs)), len(stddevs), reach)
    worst = np.abs(np.log(exact / claimed)).max()
    eta = noise_sum_slack(stddevs, dimension=1, releases=1)
    assert worst <= eta + 1e-12
    assert worst > eta / 100, "the bound would hold for a formula that is far too large as well"


def test_a_slack_with_the_deviation_of_the_sum_would_be_too_small() -> None:
    # Were tau the deviation of the whole sum rather than that of the product of two densities.
    exact = np.convolve(_rounded_gaussian_pmf(0.5, 40), _rounded_gaussian_pmf(0.5, 40))[80 - 6 : 80 + 7]
    worst = np.abs(np.log(exact / _spline_rounded_pmf(math.sqrt(0.5), 2, 6))).max()
    assert worst > 2 * math.exp(-2 * math.pi**2 * 0.5)


def test_from_64_on_shared_noise_costs_nothing() -> None:
    assert noise_sum_slack([64] * 50, dimension=10**9, releases=10**6) == 0.0


def test_one_share_has_no_slack_and_shares_too_small_are_refused() -> None:
    assert noise_sum_slack([0.01], dimension=1, releases=1) == 0.0
    with pytest.raises(ValueError, match="share so small"):
        noise_sum_slack([0.1, 0.1], dimension=1, releases=1)
