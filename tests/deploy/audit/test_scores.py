import numpy as np
import pytest

from grandrounds.deploy.audit.scores import likelihood_ratios, told_apart

RNG = np.random.default_rng(2)


def test_of_one_release_it_is_the_ratio_of_the_mixture_to_the_gaussian() -> None:
    """Written out: log(1 - q + q exp((x - 1/2) / z^2)), at the noise that the gauges show."""
    gauges = np.array([[1.5, -1.5] * 10])
    seen = np.array([[-0.3, 0.4, 2.0]])
    found = likelihood_ratios(seen, gauges=gauges, sampling_probability=0.2, copies=1)
    np.testing.assert_allclose(found, np.log(0.8 + 0.2 * np.exp((seen[0] - 0.5) / 1.5**2)), rtol=1e-6)


def test_of_a_patient_at_two_sites_it_is_that_of_a_binomial_mixture() -> None:
    found = likelihood_ratios(
        np.array([[1.2]]), gauges=np.array([[2.0, -2.0] * 10]), sampling_probability=0.5, copies=2
    )
    expected = np.log(0.25 + 0.5 * np.exp((1.2 - 0.5) / 4) + 0.25 * np.exp((2 * 1.2 - 2) / 4))
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_independent_releases_add_up() -> None:
    gauges = RNG.normal(size=(2, 400_000))
    seen = np.array([[0.5], [1.5]])
    together = likelihood_ratios(seen, gauges=gauges, sampling_probability=0.3, copies=1)
    first, second = (
        likelihood_ratios(seen[[r]], gauges=gauges[[r]], sampling_probability=0.3, copies=1) for r in range(2)
    )
    assert together[0] == pytest.approx((first + second)[0], abs=0.05)


def test_noise_that_comes_twice_is_taken_off() -> None:
    """A unit in the first of two releases with one noise is as plain as without any."""
    noise = RNG.normal(size=301)
    seen = np.array([noise, noise + RNG.normal(scale=1e-3, size=301)])
    seen[0, 0] += 1
    ratios = likelihood_ratios(seen[:, :101], gauges=seen[:, 101:], sampling_probability=0.2, copies=1)
    assert ratios[0] > 1000 > ratios[1:].max()


def test_where_there_are_too_few_gauges_releases_are_taken_to_be_independent() -> None:
    noise = RNG.normal(size=12)
    seen = np.array([noise, noise])
    ratios = likelihood_ratios(seen[:, :2], gauges=seen[:, 2:], sampling_probability=0.2, copies=1)
    assert np.abs(ratios).max() < 100


def test_noise_of_nothing_gives_finite_scores() -> None:
    ratios = likelihood_ratios(np.array([[1.0, 0.0]]), gauges=np.zeros((1, 20)), sampling_probability=1.0, copies=1)
    assert np.isfinite(ratios).all()
    assert ratios[0] > 1e6 > -1e6 > ratios[1]


def test_equal_scores_stand_in_a_fair_order_and_others_in_their_own() -> None:
    told = told_apart(np.array([1.0] * 50 + [1.01]), seed=bytes(32))
    assert len({float(f"{score:.6g}") for score in told}) > 25
    assert told.argmax() == 50
    assert not np.array_equal(told.argsort(), np.arange(51))
    assert np.array_equal(told, told_apart(np.array([1.0] * 50 + [1.01]), seed=bytes(32)))


def test_what_is_in_every_release_is_not_taken_for_noise_that_comes_twice() -> None:
    seen = np.array([[1.0, 0.0], [1.0, 0.0]])
    gauges = np.tile(RNG.normal(scale=1e-3, size=100), (2, 1))
    ratios = likelihood_ratios(seen, gauges=gauges, sampling_probability=1.0, copies=1)
    assert ratios[0] > 1000 > -1000 > ratios[1]
