"""Turns what was released into epsilon, and a target epsilon into noise. Pure: no state but caches.

Guarantee: every figure is an upper bound. The headline composes privacy loss distributions, discretised pessimistically
(Koskela et al. 2020; Doroshenko et al. 2022, "Connect the Dots"), by Google's dp_accounting; beside it stands the
Renyi bound of the same schedule (Mironov 2017; Mironov, Talwar and Zhang 2019). A schedule is fixed beforehand; studies
that are chosen one after another take a filter (``filters``; ARCHITECTURE.md, "Accounting").
"""

import functools
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from ..errors import PrivacyError
from .composition import composed_epsilon
from .events import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, NoiseStage, SampledGaussianRelease, Schedule
from .trust import Trust

if TYPE_CHECKING:  # dp_accounting takes a second to load, which whoever computes no epsilon does not have
    from dp_accounting import dp_event
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Relation = Literal["add_or_remove_one", "replace_one"]
_Gaussians = tuple[tuple[float, float, int], ...]  # q, z, and how many times

TOLERANCE: Final = 1e-4  # of epsilon, relative: about what the discretisation may add to it
MIN_DELTA: Final = 1e-12  # below it the rounding errors of the composition, up to 1e-15, would show
MAX_DELTA: Final = 0.1
MAX_EPSILON: Final = 1e6  # what one patient at every one of a thousand sites may come to

_TOLERANCE: Final = 1.0005  # of a calibrated noise multiplier, before it is rounded up
_FINE_TOLERANCE: Final = 1 + 1e-6  # of the search for where it will be
_LIBRARY: Final = f"dp_accounting {importlib.metadata.version('dp-accounting')}"
_INTERVALS: Final = (1e-5, 2e-3)  # the least and the largest up to epsilon 50; beyond, in proportion to epsilon,
_LARGE_EPSILON: Final = 50  # so that the cost stays bounded
_LEAST_EPSILON: Final = 0.1  # below it the tolerance is one of this
_COARSEST_INTERVAL: Final = 10.0
_OVERFLOW: Final = (600.0, 800.0)  # about the logarithm of the least and of the largest double
# Without the orders below 2: there the library's series for fractional orders does not converge for large q.
RDP_ORDERS: Final = (*(order / 10 for order in range(20, 110)), *range(11, 64), 128, 256, 512, 1024)
_FEW_RDP_ORDERS: Final = (2, 3, 4, 6, 8, 12, 16, 32, 64, 256)  # where a rough bound will do


@dataclass(frozen=True, kw_only=True)
class Epsilon:
    """What a schedule costs at one delta.

    Attributes:
        epsilon: by composed privacy loss distributions, the headline.
        epsilon_rdp: by Renyi divergences; None for what the library does not analyse so: mixtures, and replace-one.
        accountant: how and by which version of which library.
    """

    epsilon: float
    epsilon_rdp: float | None
    accountant: str


def epsilon(schedule: Schedule, *, delta: float, relation: Relation = "add_or_remove_one") -> Epsilon:
    """The epsilon of ``schedule`` at ``delta``.

    One person at m sites costs, under local trust, m schedules (each site releases under its own noise); under
    distributed trust the m contributions meet in one release, so what is composed is a mixture of Gaussians.

    What the schedule spends of ``delta`` on cut draws comes off first. Raises PrivacyError where less than 1e-12 is
    left, for a delta above 0.1, for an epsilon above a million, and for replace-one with a mixture, of which no
    analysis is known.
    """
    delta = _left_of(delta, schedule)
    interval = _interval(schedule, delta)
    by_pld = math.inf if math.isinf(interval) else _pld_epsilon(schedule, relation, interval, delta)
    if math.isinf(by_pld):
        raise PrivacyError(
            f"epsilon is above {MAX_EPSILON:g} at delta {delta}",
            why="such a figure promises nothing to anyone",
            fix="add noise, sample less or plan fewer steps",
        )
    by_rdp = None
    if relation == "add_or_remove_one" and not is_mixture(schedule.event):
        by_rdp = _rdp(_gaussians(schedule), delta)
    return Epsilon(
        epsilon=by_pld,
        epsilon_rdp=by_rdp,
        accountant=f"PLD, pessimistic, interval {interval:.4g}, {_LIBRARY}",
    )


@functools.lru_cache(maxsize=64)
def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    trust: Trust,
    sites_per_patient: int = 1,
    cut_probability: float = 0.0,
    stages: tuple[NoiseStage, ...] = (),
) -> float:
    """The least noise multiplier, to one part in a thousand and never too small, that keeps ``steps`` within a target.

    It is rounded up to four decimals, and 0.1 if that already suffices. Of ``stages`` it is the first one's, and what
    is least and largest is so in all of them. Raises PrivacyError if the largest, 10000, does not suffice.
    """
    factors = (1.0, *(factor for _, factor in stages))
    # In ten thousandths, as the answer is.
    least = math.ceil(MIN_NOISE_MULTIPLIER / min(factors) * 1e4) / 1e4
    most = math.floor(MAX_NOISE_MULTIPLIER / max(factors) * 1e4) / 1e4
    bracket = functools.partial(_bracket, least=least, most=most)
    rounded_up = functools.partial(_rounded_up, most=most)

    def schedule_of(noise_multiplier: float) -> Schedule:
        event = SampledGaussianRelease(
            sampling_probability=sampling_probability,
            noise_multiplier=noise_multiplier,
            trust=trust,
            sites_per_patient=sites_per_patient,
        )
        return Schedule(event=event, count=steps, cut_probability=cut_probability, stages=stages)

    left = _left_of(delta, schedule_of(1.0))

    def coarse(noise_multiplier: float) -> bool:
        return composed_epsilon([schedule_of(noise_multiplier)], delta=delta) <= target_epsilon

    def fine(noise_multiplier: float) -> bool:
        schedule = schedule_of(noise_multiplier)
        interval = _interval(schedule, left)
        if math.isinf(interval):
            return False
        return _pld_epsilon(schedule, "add_or_remove_one", interval, left) <= target_epsilon

    # Both are upper bounds and about as tight, so that the answer is usually where the search ends, and else near it.
    _, near = _bisect(coarse, *bracket(coarse, 1.0, ratio=2.0), tolerance=_FINE_TOLERANCE)
    low, high = bracket(fine, rounded_up(near), ratio=_TOLERANCE)
    if math.isinf(high):
        smallest, largest = min(factors), max(factors)
        lowered = "" if smallest == 1.0 else f", of which a stage has {smallest:g} times (noise_stages)"
        capped = "" if largest == 1.0 else f": {largest:g} times it is {MAX_NOISE_MULTIPLIER:g} (noise_stages)"
        raise PrivacyError(
            f"no noise multiplier up to {low:g}{lowered or capped} reaches epsilon {target_epsilon} at delta {delta}",
            why="the schedule has too many steps or too large a sample for that target",
            fix="raise the target, or plan fewer rounds or smaller batches"
            + ("; or leave out noise_stages, or raise their factors" if lowered else ""),
        )
    _, high = _bisect(fine, low, high, tolerance=_TOLERANCE)
    rounded = rounded_up(high)
    while not fine(rounded):
        rounded = rounded_up(rounded * _TOLERANCE)
    return rounded


def _rounded_up(noise_multiplier: float, *, most: float) -> float:
    return math.ceil(min(noise_multiplier, most) * 1e4) / 1e4


def _bracket(
    satisfies: Callable[[float], bool], start: float, *, ratio: float, least: float, most: float
) -> tuple[float, float]:
    """Two noise multipliers from ``start`` on, the higher of which satisfies and the lower does not.

    Both are the least there is where that satisfies, and the higher is infinite where none does.
    """
    low = high = start
    if satisfies(start):
        while low > least:
            low, ratio = max(high / ratio, least), ratio**2
            if not satisfies(low):
                break
            high = low
        return low, high
    while high < most:
        low, high, ratio = high, min(high * ratio, most), ratio**2
        if satisfies(high):
            return low, high
    return high, math.inf


def _bisect(satisfies: Callable[[float], bool], low: float, high: float, *, tolerance: float) -> tuple[float, float]:
    """Narrow to high / low <= ``tolerance``, keeping that ``high`` satisfies and ``low`` does not."""
    while math.isfinite(high) and high > tolerance * low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if satisfies(middle) else (middle, high)
    return low, high


def _left_of(delta: float, schedule: Schedule) -> float:
    """What of ``delta`` is not spent on cut draws."""
    if not (delta <= MAX_DELTA and delta - schedule.cut_delta >= MIN_DELTA):
        raise PrivacyError(
            f"delta is {delta}",
            why="delta is added to every probability that epsilon bounds, and must be far below one over the patients",
            fix="choose 1/(10 * patients), between 1e-12 and 0.1",
        )
    return delta - schedule.cut_delta


def is_mixture(event: SampledGaussianRelease) -> bool:
    """Whether the contributions of one person's sites meet in one release."""
    return event.trust == "distributed" and event.sites_per_patient > 1


def _interval(schedule: Schedule, delta: float) -> float:
    """The discretisation's; infinity where epsilon is above what means anything.

    Replacing losses by the ends of cells of width h adds at most n (t + 1) h^2 / 8 to epsilon (``composition``), at the
    tilt t, which for a Gaussian is 2 log(1 / delta) / epsilon. A wrong guess of epsilon makes the result less tight.
    """
    if is_mixture(schedule.event):
        # That all m contributions arrive whenever one does is worse than what happens, and has a Renyi analysis.
        m = schedule.event.sites_per_patient
        q, count = 1 - (1 - schedule.event.sampling_probability) ** m, schedule.count
        alike = tuple((q, event.noise_multiplier / m, times) for event, times in schedule.events)
    else:
        count = schedule.count * schedule.event.sites_per_patient
        alike = _gaussians(schedule)
    bound = _rdp(alike, delta, orders=_FEW_RDP_ORDERS)
    finest, coarsest = _INTERVALS
    previous = math.inf
    while _LARGE_EPSILON < bound < previous / 2:
        interval = min(coarsest * bound / _LARGE_EPSILON, _COARSEST_INTERVAL)
        previous, bound = bound, min(bound, _pld_epsilon(schedule, "add_or_remove_one", interval, delta))
    if bound > MAX_EPSILON:
        return math.inf
    near = max(bound, _LEAST_EPSILON)
    interval = math.sqrt(8 * TOLERANCE * near / (count * (1 - 2 * math.log(delta) / near)))
    return min(max(interval, finest), coarsest) * max(1.0, bound / _LARGE_EPSILON)


def _gaussians(schedule: Schedule) -> _Gaussians:
    """Of a schedule without mixtures."""
    return tuple(
        (event.sampling_probability, event.noise_multiplier, count * event.sites_per_patient)
        for event, count in schedule.events
    )


@functools.cache
def _rdp(gaussians: _Gaussians, delta: float, orders: tuple[float, ...] = RDP_ORDERS) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    accountant = RdpAccountant(orders)
    for sampling_probability, noise_multiplier, count in gaussians:
        accountant.compose(sampled_gaussian(sampling_probability, noise_multiplier), count)
    return float(accountant.get_epsilon(delta))


@functools.cache
def _pld_epsilon(schedule: Schedule, relation: Relation, interval: float, delta: float) -> float:
    composed = _composed(schedule, relation, interval)
    with np.errstate(over="ignore"):
        found = float(composed.get_epsilon_for_delta(delta))
    if math.isfinite(found):
        return found
    # Around 720 the library divides by e^-epsilon, which has underflowed; its delta is right there too.
    low, high = _OVERFLOW
    if composed.get_delta_for_epsilon(high) > delta:
        return math.inf
    while high - low > interval:
        middle = (low + high) / 2
        low, high = (low, middle) if composed.get_delta_for_epsilon(middle) <= delta else (middle, high)
    return high


@functools.lru_cache(maxsize=4)  # a composed distribution takes tens of megabytes
def _composed(schedule: Schedule, relation: Relation, interval: float) -> "PrivacyLossDistribution":
    """The privacy loss of the whole schedule: of each stage, composed."""
    first, *others = (_composed_stage(event, count, relation, interval) for event, count in schedule.events)
    return functools.reduce(lambda before, stage: before.compose(stage), others, first)


def _composed_stage(
    event: SampledGaussianRelease, count: int, relation: Relation, interval: float
) -> "PrivacyLossDistribution":
    q, z, m = event.sampling_probability, event.noise_multiplier, event.sites_per_patient
    if not is_mixture(event):
        count *= m
    elif q < 1:
        if relation == "replace_one":
            raise PrivacyError(
                "replace-one for a patient at several sites under distributed trust",
                why="no analysis of that mixture of Gaussians is known",
                fix="report add-or-remove-one, or replace-one for one site per patient",
            )
        return _mixture_pld(z, m, q, interval).self_compose(count)
    else:
        z /= m
    if q == 1:  # so many Gaussians are one, of that much less noise
        return _gaussian_pld(z / math.sqrt(count), q, relation, interval)
    return _gaussian_pld(z, q, relation, interval).self_compose(count)


# What one release loses is most of the work, and that of every number of its attempts.
@functools.lru_cache(maxsize=8)
def _gaussian_pld(
    noise_multiplier: float, sampling_probability: float, relation: Relation, interval: float
) -> "PrivacyLossDistribution":
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
    from dp_accounting.privacy_accountant import NeighboringRelation

    return from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_probability,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation[relation.upper()],
    )


@functools.lru_cache(maxsize=8)
def _mixture_pld(
    noise_multiplier: float, contributions: int, sampling_probability: float, interval: float
) -> "PrivacyLossDistribution":
    from .gaussian_mixture import binomial_mixture_pld

    return binomial_mixture_pld(
        noise_multiplier=noise_multiplier,
        contributions=contributions,
        sampling_probability=sampling_probability,
        interval=interval,
    )


def sampled_gaussian(sampling_probability: float, noise_multiplier: float) -> "dp_event.DpEvent":
    """The release of one site, as dp_accounting knows it."""
    from dp_accounting import dp_event

    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    return gaussian if sampling_probability == 1 else dp_event.PoissonSampledDpEvent(sampling_probability, gaussian)
