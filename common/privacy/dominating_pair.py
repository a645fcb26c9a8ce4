"""One release with one person and without: two distributions, and their privacy loss on a grid that dominates it."""

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy  # each part of it is loaded when it is first asked for
from numpy.typing import NDArray

from .events import SampledGaussianRelease

Array = NDArray[np.float64]

_UNLIKELY: Final = 1e-26  # a probability far below every delta, a hundred times over
_LARGEST_EXPONENT: Final = 700.0
_SLIGHT: Final = 1e-9  # of an interval: above the rounding errors of a loss in intervals
_ROUNDINGS: Final = 40 * 2.0**-52  # of a probability of a tail, in what it is computed from


@dataclass(frozen=True)
class DiscreteLoss:
    """A privacy loss: ``pmf`` [k] at ``first``, ``first`` + 1 .. times the interval, and ``infinite`` beyond."""

    first: int
    pmf: Array
    infinite: float


@dataclass(frozen=True)
class DominatingPair:
    """P = sum_j p_j N(j, z^2) with a person who contributes j times, Q = N(0, z^2) without.

    No other neighbouring data sets are told apart better, in either direction: Zhu, Dong and Wang 2022 for one
    contribution, Choquette-Choo et al. 2024, Corollary 4.7, for Binomial(m, q)(j).

    Attributes:
        noise_multiplier: z.
        counts: the j above 0, rising.
        weights: their p_j.
        none: p_0.
        beyond: the probability of the counts that are left out. Removed, they count as an infinite loss; when a person
            is added, leaving them out only raises the loss.
    """

    noise_multiplier: float
    counts: tuple[int, ...]
    weights: tuple[float, ...]
    none: float
    beyond: float = 0.0

    @classmethod
    def of(cls, event: SampledGaussianRelease) -> "DominatingPair":
        """The pair of one release. Under local trust a person at m sites meets m releases, each with this pair."""
        q, z = event.sampling_probability, event.noise_multiplier
        m = event.sites_per_patient if event.trust == "distributed" else 1
        if q == 1:
            return cls(z / m, (1,), (1.0,), 0.0)
        if m == 1:
            return cls(z, (1,), (q,), 1 - q)
        weights = scipy.stats.binom.pmf(np.arange(m + 1), m, q)
        kept = weights > _UNLIKELY
        kept[1 + np.argmax(weights[1:])] = True  # or nothing would be left where q is very small
        counts = np.flatnonzero(kept[1:]) + 1
        return cls(
            z,
            tuple(counts.tolist()),
            tuple(weights[counts].tolist()),
            float(weights[0] * kept[0]),
            math.fsum(weights[~kept]),
        )

    @property
    def steepness(self) -> float:
        """The most that the loss rises over one deviation of the noise."""
        return self.counts[-1] / self.noise_multiplier

    def span(self, deviations: float) -> tuple[float, float]:
        """Where P and Q are, but for their tails beyond that many ``deviations``."""
        reach = deviations * self.noise_multiplier
        return -reach, self.counts[-1] + reach

    def loss(self, x: Array) -> Array:
        """log P(x) / Q(x) for each of ``x`` [n]; it rises with x, from log p_0."""
        offsets, slopes = self._lines
        terms = offsets + slopes * x[:, None]
        some: Array = terms[:, 0] if len(slopes) == 1 else scipy.special.logsumexp(terms, axis=1)
        return np.logaddexp(some, self._log_none, out=some)

    def discretised(self, interval: float, deviations: float) -> tuple[DiscreteLoss, DiscreteLoss]:
        """The losses of a person removed and of one added on multiples of ``interval``, so that both dominate.

        Connect-the-Dots (Doroshenko et al. 2022), cell by cell: where losses lie between l and l + h, the mass p of the
        distribution that is observed and q of the other become a at l and b at l + h with a + b = p and
        a exp(-l) + b exp(-l - h) = q. What lies below the grid, whose ends are beyond ``span(deviations)``, counts as
        its lower end; what lies above, as infinite.
        """
        low, high = self.loss(np.array(self.span(deviations))) / interval
        first = math.floor(low)
        last = max(math.ceil(high), first + 1)
        losses = interval * np.arange(first, last + 1)
        x = self._inverse_loss(losses)
        without, present = self._masses(x)
        removed = _connected(present, without, losses, interval)
        added = _connected(without[::-1], present[::-1], -losses[::-1], interval)
        return (
            DiscreteLoss(first, removed, float(present[-1]) + self.beyond),
            DiscreteLoss(-last, added, float(without[0])),
        )

    def discretised_below(self, interval: float, deviations: float, tilt: float) -> tuple[DiscreteLoss, float]:
        """The loss of a person removed on multiples of ``interval`` plus an offset, so that the pair dominates it.

        Told only in which cell an outcome is, nobody can tell P from Q better, and a cell's loss log(p/q) is between
        those at its ends. Cells have a multiple of the interval in their middle; each loss is rounded down to a
        multiple plus the offset at which least is lost, weighted by exp(``tilt`` L). Counts that are left out are so
        in P alone, which lowers its loss.
        """
        low, high = self.loss(np.array(self.span(deviations))) / interval
        indices = np.arange(math.floor(low), max(math.ceil(high), math.floor(low) + 1) + 1)
        x = self._inverse_loss(interval * (indices[1:] - 0.5))
        without, present = self._masses(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            doubt = _ROUNDINGS * (_nearer_tail(present) / present + _nearer_tail(without) / without)
            exact = np.log(present / without) - doubt
        ends = np.append(self._log_none, interval * (indices[1:] - 0.5))
        loss = np.maximum(np.nan_to_num(exact, nan=-np.inf, posinf=-np.inf), ends)
        loss[-1] = ends[-1]
        there = (present > 0) & np.isfinite(loss)
        present, loss, indices = present[there], loss[there], indices[there]
        places = loss / interval - indices
        weights = present * np.exp(tilt * (loss - loss.max()))
        likely = np.argsort(places)
        likely = likely[np.searchsorted(np.cumsum(weights[likely]) / weights.sum(), np.linspace(0.0, 1.0, 17)[:-1])]
        offset = min(places[[*likely, np.argmax(weights)]], key=lambda place: float(weights @ ((places - place) % 1.0)))
        rounded = np.floor(loss / interval - offset + _SLIGHT).astype(np.int64)
        first = int(rounded.min())
        pmf: Array = np.bincount(rounded - first, present).astype(np.float64)
        return DiscreteLoss(first, pmf, 0.0), interval * (float(offset) - 2 * _SLIGHT)

    def _masses(self, x: Array) -> tuple[Array, Array]:
        """Q and P of the cells [n + 1] between the rising ``x`` [n]."""
        without = _gaussian_masses(x / self.noise_multiplier)
        present = self.none * without
        for count, weight in zip(self.counts, self.weights, strict=True):
            present += weight * _gaussian_masses((x - count) / self.noise_multiplier)
        return without, present

    @property
    def _log_none(self) -> float:
        return math.log(self.none) if self.none else -math.inf

    @functools.cached_property
    def _lines(self) -> tuple[Array, Array]:
        """Offsets and slopes [m]: log p_j N(x; j, z^2) / N(x; 0, z^2) = offset_j + slope_j x."""
        counts, variance = np.array(self.counts, dtype=np.float64), self.noise_multiplier**2
        return np.log(self.weights) - counts**2 / (2 * variance), counts / variance

    def _inverse_loss(self, losses: Array) -> Array:
        """The x [n] at which the loss is each of ``losses`` [n]; minus infinity up to log p_0."""
        offsets, slopes = self._lines
        with np.errstate(divide="ignore"):
            targets = losses + np.log1p(-np.exp(np.minimum(self._log_none - losses, 0.0)))
        x = np.full_like(targets, -np.inf)
        finite = np.isfinite(targets)
        x[finite] = where_sum_reaches(targets[finite], offsets, slopes)
        return x


def where_sum_reaches(targets: Array, offsets: Array, slopes: Array) -> Array:
    """The x [n] at which log sum_j exp(offset_j + slope_j x) is each of ``targets`` [n], all finite.

    ``offsets`` and ``slopes`` (all above 0) are [m]. One term has a closed form. For several, Newton's iteration on the
    sum, which is convex and steep, starts where one term alone reaches the target and the sum exceeds it: it falls
    monotonically.
    """
    x: Array = np.min((targets[:, None] - offsets) / slopes, axis=1)
    if len(slopes) == 1:
        return x
    for _ in range(50):
        terms = offsets + slopes * x[:, None]
        peak = terms.max(axis=1)
        weights = np.exp(terms - peak[:, None])
        total = weights.sum(axis=1)
        step = (peak + np.log(total) - targets) / ((weights @ slopes) / total)
        x = x - step
        if np.all(np.abs(step) <= 1e-9 * (1 + np.abs(x))):
            break
    return x


def _gaussian_masses(u: Array) -> Array:
    """N(0, 1) of the cells [n + 1] between the rising ``u`` [n], in the tails as exact as in the middle."""
    tails = np.copysign(scipy.special.ndtr(-np.abs(u)), -u)
    masses: Array = np.diff(tails, prepend=0.0, append=0.0)
    masses[np.searchsorted(u, 0.0)] += 1.0  # of this cell the two ends count from opposite sides
    return np.maximum(masses, 0.0, out=masses)


def _nearer_tail(masses: Array) -> Array:
    """At least the mass from each cell on to the nearer end."""
    return np.minimum(np.cumsum(masses), np.cumsum(masses[::-1])[::-1])


def _connected(observed: Array, other: Array, losses: Array, interval: float) -> Array:
    """The probabilities at ``losses`` [n] of the cells [n + 1] that they bound, without the last cell."""
    p, q = observed[1:-1], other[1:-1]
    # Where the exponential would overflow, a smaller one only moves mass up.
    upper = (p - q * np.exp(np.minimum(losses[:-1], _LARGEST_EXPONENT))) / -math.expm1(-interval)
    upper = np.clip(upper, 0.0, p)
    pmf = np.zeros_like(losses)
    pmf[0] = observed[0]
    pmf[:-1] += p - upper
    pmf[1:] += upper
    return pmf
