"""How well anybody can tell a person in a study from people outside it, if the noise is what a schedule says.

A canary that took part stands in a line-up with K others that did not, and whoever scores them counts those below it.
Guarantee: under a schedule, at whatever scores, that count is stochastically no larger than the one computed here.

Why. Let P be what a score is of somebody in the study, Q of somebody outside it, and ROC(a) the most that a test of
false-positive rate a detects, by the schedule's dominating pair (Zhu, Dong and Wang 2022). Any score has P(s > t) <=
ROC(Q(s > t)) at each threshold t, since "s > t" is a test (Wasserman and Zhou 2010; Dong, Roth and Su 2022,
Proposition 2.4 for its composition). So the share of Q below the score of somebody inside is stochastically no larger
than that of the pair's own loss, given which the count of K others is binomial and rises with the share. Others who
score the same count as above it, which only lowers the count. A discretised pair that dominates has a ROC curve that is
nowhere lower (Doroshenko et al. 2022, "Connect the Dots").
"""

import functools
import math
from typing import Final

import numpy as np
import scipy  # each part of it is loaded when it is first asked for

from ..privacy.dominating_pair import Array, DominatingPair
from ..privacy.events import Schedule

_DEVIATIONS: Final = 9.0  # of the noise, beyond which a release counts as an infinite loss: a probability of 1e-19
_POINTS: Final = 100  # at least, of the grid of losses, to a deviation of the whole schedule's
_SPREAD: Final = 1e-3  # of the schedule's variance: what cells of a width may add to it
_NODES: Final = 400
_FAR: Final = 20.0  # deviations, and losses of one release, beyond which a sum of losses has a mass below 1e-12
_ROUNDING: Final = 1e-15  # of a mass, by the transforms: in a tail, exp(-loss) would make much of it


@functools.lru_cache(maxsize=256)
def counts_in_line_up(schedule: Schedule, others: int) -> tuple[float, ...]:
    """The probabilities [``others`` + 1] with which so many of ``others`` score below somebody who took part.

    A loss of the grid is told from the same loss by a fair lot, as on a ROC curve between two of its corners: the share
    of Q below is uniform there, and the binomial in it a polynomial, of which Gauss's quadrature is exact.
    """
    present, outside = _composed(schedule)
    shares = np.minimum(np.concatenate([[0.0], np.cumsum(outside)]) + (1.0 - outside.sum()), 1.0)
    nodes, weights = np.polynomial.legendre.leggauss(others // 2 + 1)
    there = present > 0
    lower, width = shares[:-1][there, None], np.diff(shares)[there, None]
    below = lower + width * (nodes + 1) / 2
    masses = present[there, None] * weights / 2
    pmf = np.array([(masses * below**k * (1.0 - below) ** (others - k)).sum() for k in range(others + 1)])
    pmf *= scipy.special.comb(others, np.arange(others + 1))
    pmf[-1] += max(0.0, 1.0 - pmf.sum())  # what has an infinite loss
    return tuple(map(float, pmf))


def tail(schedule: Schedule, *, others: int, line_ups: int, count: int) -> float:
    """At most the probability that ``count`` or more are below, over so many independent ``line_ups`` of ``others``."""
    pmf = np.array(counts_in_line_up(schedule, others))
    size = line_ups * others + 1
    total = np.fft.irfft(np.fft.rfft(pmf, 2 * size) ** line_ups, 2 * size)[:size]
    return min(1.0, float(total[count:].sum()) + 1e-9)  # more than the transforms' rounding


def _composed(schedule: Schedule) -> tuple[Array, Array]:
    """The privacy loss of the whole schedule on a rising grid: its masses with the person in the study, and without.

    What is left of the first to 1 is an infinite loss, of the second one below the grid.
    """
    pairs = [
        (DominatingPair.of(event), count * (event.sites_per_patient if event.trust == "local" else 1))
        for event, count in schedule.events
    ]
    releases = sum(count for _, count in pairs)
    deviation = math.sqrt(sum(count * _deviation(pair) ** 2 for pair, count in pairs))
    interval = deviation * min(1 / _POINTS, 2 * math.sqrt(_SPREAD / releases))
    losses = [(pair.discretised(interval, _DEVIATIONS)[0], count) for pair, count in pairs]
    mean = sum(count * float(loss.pmf @ np.arange(len(loss.pmf))) for loss, count in losses)
    longest = max(len(loss.pmf) for loss, _ in losses)
    reach = _FAR * (deviation / interval + longest)
    first = max(0, math.floor(mean - reach))
    last = min(sum(count * (len(loss.pmf) - 1) for loss, count in losses), math.ceil(mean + reach))
    size = 1 << max(1, math.ceil(math.log2(last - first + longest)))
    transform = np.ones(size // 2 + 1, dtype=np.complex128)
    for loss, count in losses:
        transform *= np.fft.rfft(np.bincount(np.arange(len(loss.pmf)) % size, loss.pmf, size)) ** count
    masses = np.fft.irfft(transform, size)[np.arange(first, last + 1) % size]
    present: Array = np.maximum(masses - _ROUNDING, 0.0)
    grid = interval * (sum(count * loss.first for loss, count in losses) + np.arange(first, last + 1))
    outside: Array = present * np.exp(-np.maximum(grid, -700.0))
    return present, outside / max(1.0, outside.sum())


def _deviation(pair: DominatingPair) -> float:
    """About that of one release's loss, with the person in the study."""
    x = np.linspace(*pair.span(_DEVIATIONS), _NODES)
    losses = pair.loss(x)
    weights = np.exp(losses - (x / pair.noise_multiplier) ** 2 / 2)
    weights /= weights.sum()
    return float(math.sqrt(weights @ (losses - weights @ losses) ** 2))
