"""What is left of the noise in a sum, whoever lasts: never less than is claimed, and little more where all last."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from grandrounds.common.privacy import site_noise
from grandrounds.common.privacy.mechanism import Lattice
from grandrounds.common.privacy.noise_layers import noise_levels, noise_over_claim, noise_shares
from grandrounds.common.privacy.site_noise import SiteNoise

Cohort = tuple[int, int, int]  # sites n, threshold t, corrupt sites c
NOISE_MULTIPLIER, SENSITIVITY = 0.7, Lattice(dimension=20_000, clipping_norm=1.0).sensitivity
CLAIMED = (Fraction(NOISE_MULTIPLIER) * SENSITIVITY) ** 2
# Of what the protocol allows: every cohort of up to 12 sites, and some larger ones.
LARGER = [(15, 10, 4), (20, 14, 1), (20, 14, 3), (20, 14, 7), (33, 22, 10), (50, 34, 17), (60, 40, 1), (60, 60, 58)]


def allowed() -> Iterator[Cohort]:
    """2t > n + c, and t - c >= 2."""
    for sites in range(3, 13):
        for threshold in range(2, sites + 1):
            for corrupt in range(1, threshold - 1):
                if 2 * threshold > sites + corrupt:
                    yield sites, threshold, corrupt
    yield from LARGER


def of(cohort: Cohort, noise_multiplier: float = NOISE_MULTIPLIER, sensitivity: int = SENSITIVITY) -> SiteNoise:
    sites, threshold, corrupt = cohort
    return SiteNoise.of(
        noise_multiplier=noise_multiplier,
        sensitivity=sensitivity,
        trust="distributed",
        sites=sites,
        threshold=threshold,
        corrupt_sites=corrupt,
    )


def level_of(cohort: Cohort, survivors: int) -> int:
    """The highest level that so many reach."""
    sites, threshold, _ = cohort
    return max(k for k in (threshold, *noise_levels(sites=sites, threshold=threshold)) if k <= survivors)


def least_over_claim(cohort: Cohort, noise: SiteNoise, *, level: Callable[[Cohort, int], int] = level_of) -> Fraction:
    """The least variance that honest sites have left in a sum, whoever lasts, over what is claimed."""
    sites, threshold, corrupt = cohort
    return min(
        (survivors - corrupt) * noise.variance_left(level(cohort, survivors)) / CLAIMED
        for survivors in range(threshold, sites + 1)
    )


def test_whoever_lasts_the_honest_sites_noise_is_all_that_is_claimed() -> None:
    for cohort in allowed():
        noise = of(cohort)
        assert [layer.level for layer in noise.layers] == list(noise_levels(sites=cohort[0], threshold=cohort[1]))
        assert least_over_claim(cohort, noise) >= 1, cohort


def test_where_all_last_a_hundredth_at_most_is_there_beyond_one_share_for_each_corrupt_site() -> None:
    for cohort in allowed():
        sites, _, corrupt = cohort
        in_sum = sites * of(cohort).variance_left(level_of(cohort, sites))
        due = Fraction(sites, sites - corrupt) * CLAIMED
        assert due <= in_sum <= Fraction(101, 100) * due, cohort
        said = noise_over_claim(sites, trust="distributed", sites=sites, threshold=cohort[1], corrupt_sites=corrupt)
        assert said == pytest.approx(math.sqrt(in_sum / CLAIMED), rel=0.005)


def test_fewer_survivors_have_what_their_level_s_number_would_have() -> None:
    for cohort in allowed():
        sites, threshold, corrupt = cohort
        noise = of(cohort)
        for survivors in range(threshold, sites + 1):
            due = Fraction(survivors, level_of(cohort, survivors) - corrupt) * CLAIMED
            in_sum = survivors * noise.variance_left(level_of(cohort, survivors))
            assert due <= in_sum <= Fraction(101, 100) * due, (cohort, survivors)


@pytest.mark.parametrize(
    ("cohort", "base", "layers"),
    [
        # 10000 over the square roots of: n - c, and (k' - c)(k - c) / (k - k') between levels k' and k; rounded up.
        ((5, 4, 1), 5000, {5: 2887}),
        ((10, 7, 1), 3334, {8: 1544, 9: 1337, 10: 1179}),
        ((10, 7, 3), 3780, {8: 2237, 9: 1826, 10: 1544}),
        ((20, 14, 1), 2295, {17: 1201, 19: 834, 20: 541}),
        ((20, 14, 3), 2426, {17: 1396, 19: 945, 20: 607}),
    ],
)
def test_a_site_s_noise_has_known_answers(cohort: Cohort, base: int, layers: dict[int, int]) -> None:
    noise = of(cohort, noise_multiplier=1.0, sensitivity=10_000)
    assert noise.stddev == base
    assert {layer.level: layer.stddev for layer in noise.layers} == layers


# --- each mistake leaves less than is claimed, somewhere --------------------------------------------------------------


def with_layers() -> Iterator[Cohort]:
    return (cohort for cohort in allowed() if cohort[0] > cohort[1])


def test_a_layer_that_a_site_forgets_is_missing_where_few_last() -> None:
    for cohort in with_layers():
        noise = of(cohort)
        for forgotten in noise.layers:
            rest = tuple(layer for layer in noise.layers if layer is not forgotten)
            assert least_over_claim(cohort, replace(noise, layers=rest)) < 1, cohort


def test_deviations_that_are_rounded_down_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_down(*, noise_multiplier: float, sensitivity: int, honest_shares: Fraction) -> int:
        return math.isqrt(math.floor((Fraction(noise_multiplier) * sensitivity) ** 2 / honest_shares))

    monkeypatch.setattr(site_noise, "site_noise_stddev", rounded_down)
    for cohort in allowed():
        assert least_over_claim(cohort, of(cohort)) < 1, cohort


def test_a_layer_that_goes_one_site_too_early_is_missing() -> None:
    for cohort in with_layers():
        early = least_over_claim(cohort, of(cohort), level=lambda cohort, s: level_of(cohort, min(s + 1, cohort[0])))
        assert early < 1, cohort


def test_layers_for_nobody_corrupt_are_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(*, corrupt_sites: int, **fields: Any) -> tuple[Fraction, ...]:
        return noise_shares(corrupt_sites=0, **fields)

    monkeypatch.setattr(site_noise, "noise_shares", trusting)
    for cohort in allowed():
        assert least_over_claim(cohort, of(cohort)) < 1, cohort
