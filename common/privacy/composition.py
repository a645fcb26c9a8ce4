"""Epsilon of many different releases together: what one site-round after another costs one person.

Guarantee: an upper bound. Every release's pair of distributions is replaced by a discrete one that dominates it; the
discrete losses are convolved up to an error that is bounded and counted; a person added and a person removed are both
composed, and the worse counts. What is cut from a tail becomes the probability of an infinite loss, hence of delta.

The convolution is a product of Fourier transforms, of *tilted* losses: with M(t) = E exp(t L), they have the
probabilities p(l) exp(t l) / M(t) instead of p(l). Most of that mass is near epsilon, so that neither what wraps around
nor the transforms' rounding errors are more than a small part of delta, however small delta is. (The tilt is that of
large deviations; Alghamdi et al. 2023, "The Saddle-Point Method in Differential Privacy".)
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import scipy  # each part of it is loaded when it is first asked for

from .dominating_pair import Array, DiscreteLoss, DominatingPair
from .events import MIN_NOISE_MULTIPLIER, SampledGaussianRelease, Schedule

TOLERANCE: Final = 5e-4  # of epsilon, relative: what the discretisation may add to it
MANY: Final = 5_000  # distinct releases; noise multipliers of more of them are rounded

_RATIO: Final = 1.0005  # between neighbouring rounded noise multipliers
_CUT: Final = 1e-4  # of delta: on tails that are cut
_WRAPPED: Final = 1e-4  # of delta: on losses above the window
_LAP: Final = 1e-4  # of the tilted mass: on what one lap brings back to epsilon
_ULP: Final = 2.0**-52
_FAR: Final = 0.9  # of the epsilon for which a grid was chosen: below it, another is chosen
_FINER: Final = 1e-3  # of the tolerance, for a lower bound, which cells of a width make less tight than an upper one
_STEEPER: Final = (1.1, 1.3, 1.6, 2.0, 3.0, 5.0)  # tilts that bound a tilted tail, over the tilt
_LOG_TILTS: Final = (-7.0, 14.0)
_NODES: Final = 200
_MOST_POINTS: Final = 1 << 22
_LEAST_EPSILON: Final = 1e-3  # below it the tolerance is one of this


def composed_epsilon(schedules: Iterable[Schedule], *, delta: float, tolerance: float = TOLERANCE) -> float:
    """The epsilon at ``delta`` of all the releases of ``schedules`` together, for one person added or removed.

    The schedules are fixed beforehand, and ``delta`` is 1e-12 or more, with what they spend of it on cut draws. The
    result is infinite where nothing could be certified. Time grows with the number of *distinct* releases, under a
    millisecond each. Where there are more than 5,000, noise multipliers are rounded down by up to one part in 2,000.
    That is sound: adding the rest of the noise to a release with less of it gives the other. A Gaussian's epsilon
    thereby grows by up to one part in 1,000.

    Discretisation adds about ``tolerance`` times epsilon at most: in a cell of width h, replacing losses by the cell's
    ends multiplies E exp(t L) by 1 + t (t + 1) h^2 / 8 at most, to second order, so that n releases add at most
    n (t + 1) h^2 / 8 to epsilon, from which h is chosen. Whatever h, the result is never below the true epsilon.
    """
    schedules = list(schedules)
    counts = _pairs(schedules)
    if not counts:
        return 0.0
    delta -= sum(schedule.cut_delta for schedule in schedules)
    if delta <= 0:
        return math.inf
    releases = sum(counts.values())
    deviations = -float(scipy.special.ndtri(_CUT * delta / releases))
    # The relative error of a probability: a thousand roundings a release, and one a point in the final sums.
    inner_delta = delta * (1 - 1e-9 - 1000 * _ULP * releases)
    bound = math.inf
    while True:
        circles, interval, expected = _choose_grid(counts, deviations, delta, tolerance, bound)
        sums = [_LossSum(circle, interval) for circle in circles]
        for pair, count in counts.items():
            for total, loss in zip(sums, pair.discretised(interval, deviations), strict=True):
                total.add(loss, count)
        found = max(0.0, *(total.epsilon(inner_delta) + _misplaced(counts, interval) for total in sums))
        if not _LEAST_EPSILON < found < _FAR * expected:
            return min(bound, found)
        bound = found


def recomputed_epsilon(schedule: Schedule, *, delta: float) -> float:
    """The epsilon of ``schedule`` at ``delta``, as ``accountant.epsilon`` has it, without that function or its library.

    For whoever checks a claim: the two share the events and no more. The result is infinite where nothing could be
    certified.
    """
    return composed_epsilon([schedule], delta=delta)


def least_epsilon(schedule: Schedule, *, delta: float, tolerance: float = TOLERANCE) -> float:
    """At most the epsilon of ``schedule`` at ``delta``: who states less than this states something false.

    Guarantee: a lower bound. The pair of one release dominates and is itself that of two data sets; outcomes are told
    only by their cell (which reveals less), losses are rounded down, tails are cut, and whatever wraps around or was
    rounded is taken off. What is spent of ``delta`` on cut draws comes off first, as in a claim. A person removed alone
    counts. Where nothing can be certified it is 0. A larger ``tolerance`` makes it less tight, and quicker.
    """
    upper = composed_epsilon([schedule], delta=delta)
    delta -= schedule.cut_delta
    if delta <= 0:
        return upper
    counts = _pairs([schedule])
    releases = sum(counts.values())
    deviations = -float(scipy.special.ndtri(_CUT * delta / releases))
    (circle, _), interval, _ = _choose_grid(counts, deviations, delta, tolerance * _FINER, upper)
    total, offset = _LossSum(circle, interval), -_misplaced(counts, interval)
    for pair, count in counts.items():
        loss, shift = pair.discretised_below(interval, deviations, circle.tilt)
        total.add(loss, count)
        total.note_tail(loss, count)
        offset += count * shift
    return max(0.0, total.least_epsilon(delta * (1 + 1e-9 + 1000 * _ULP * releases)) + offset)


def _pairs(schedules: Iterable[Schedule]) -> Mapping[DominatingPair, int]:
    """How many times each pair is to be composed."""
    events: Counter[SampledGaussianRelease] = Counter()
    for schedule in schedules:
        for event, count in schedule.events:
            events[event] += count
    many = len(events) > MANY
    pairs: Counter[DominatingPair] = Counter()
    for event, count in events.items():
        each = replace(event, noise_multiplier=_rounded_down(event.noise_multiplier)) if many else event
        pairs[DominatingPair.of(each)] += count * (event.sites_per_patient if event.trust == "local" else 1)
    return pairs


def _rounded_down(noise_multiplier: float) -> float:
    rounded = _RATIO ** math.floor(math.log(noise_multiplier) / math.log(_RATIO))
    return min(noise_multiplier, max(rounded, MIN_NOISE_MULTIPLIER))


@dataclass(frozen=True)
class _Circle:
    """On what losses are convolved.

    Attributes:
        tilt: the t of exp(t L).
        reach: the difference of losses over which exp(-t L) falls to a negligible part of delta.
        length: the least circumference, in losses, at least twice the reach.
    """

    tilt: float
    reach: float
    length: float


class _LossSum:
    """The sum of independent discrete losses, held as the Fourier transform of its tilted distribution."""

    def __init__(self, circle: _Circle, interval: float) -> None:
        self._tilt = circle.tilt
        self._reach = circle.reach
        self._interval = interval
        self._size = 1 << max(1, math.ceil(math.log2(circle.length / interval)))
        self._transform = np.ones(self._size // 2 + 1, dtype=np.complex128)
        self._log_moment = 0.0
        self._steeper_log_moments = np.zeros(len(_STEEPER))
        self._infinite = 0.0
        self._count = 0

    def add(self, loss: DiscreteLoss, count: int) -> None:
        """Compose ``loss`` with what is there, ``count`` times."""
        indices = loss.first + np.arange(len(loss.pmf))
        highest = self._interval * float(indices[np.flatnonzero(loss.pmf)[-1]])
        tilted = loss.pmf * np.exp(np.minimum(self._tilt * (self._interval * indices - highest), 0.0))
        total = float(tilted.sum())
        transform = np.fft.rfft(np.bincount(indices % self._size, tilted / total, self._size))
        self._transform *= transform if count == 1 else transform**count
        self._log_moment += count * (math.log(total) + self._tilt * highest)
        self._infinite += count * loss.infinite
        self._count += count

    def note_tail(self, loss: DiscreteLoss, count: int) -> None:
        """For ``least_epsilon``, of each loss that is added: what bounds how much of the sum wraps around."""
        losses = self._interval * (loss.first + np.flatnonzero(loss.pmf))
        log_pmf = np.log(loss.pmf[loss.pmf > 0])
        for number, factor in enumerate(_STEEPER):
            self._steeper_log_moments[number] += count * float(_log_sum_exp(log_pmf + factor * self._tilt * losses))

    def epsilon(self, delta: float) -> float:
        """An upper bound on the least epsilon whose hockey-stick divergence is at most ``delta``.

        The window of losses ends below ``top``. Those from there on have wrapped around as lower ones, so that all
        their probability is added to the divergence. Those below the circle have wrapped as higher ones, which only
        adds to it.
        """
        losses, divergences, untilt = self._window()
        above = self._probability_above(self._interval * self._top)
        bounds = divergences + untilt * self._rounding_error() + above + self._infinite
        if not len(bounds) or bounds[-1] > delta:
            return math.inf
        return self._crossing(losses, bounds, int(np.argmax(bounds <= delta)), delta)

    def least_epsilon(self, delta: float) -> float:
        """A lower bound on it: losses from the window's end on are left out, and what has wrapped into it taken off."""
        losses, divergences, untilt = self._window()
        if not len(losses):
            return -math.inf
        bounds = divergences - untilt * (self._rounding_error() + self._wrapped(losses) / (self._tilt + 1))
        exceeding = np.flatnonzero(bounds > delta)  # not all before the last: what is taken off grows to the left
        if not len(exceeding):
            return -math.inf
        last = int(exceeding[-1])
        return self._crossing(losses, bounds, last + 1, delta) if last + 1 < len(losses) else float(losses[last])

    @property
    def _top(self) -> int:
        """The end of the window, in intervals."""
        return math.ceil((self._log_moment / self._tilt + self._reach) / self._interval)

    def _window(self) -> tuple[Array, Array, Array]:
        """Losses, their divergences as far as they follow from the window, and exp(log M - tilt * loss)."""
        h = self._interval
        indices = np.arange(self._top - math.floor(2 * self._reach / h), self._top)
        losses: Array = h * indices.astype(np.float64)
        tilted = np.maximum(np.fft.irfft(self._transform, self._size)[indices % self._size], 0.0)
        untilt: Array = np.exp(self._log_moment - self._tilt * losses)
        at_least = np.cumsum((tilted * untilt)[::-1])
        # delta(l) = (1 - exp(-h)) P(L >= l + h) + exp(-h) delta(l + h), from delta = 0 at the last loss of the window
        divergences: Array = np.zeros(len(losses))
        divergences[-2::-1] = scipy.signal.lfilter([-math.expm1(-h)], [1.0, -math.exp(-h)], at_least[:-1])
        return losses, divergences, untilt

    def _crossing(self, losses: Array, bounds: Array, at: int, delta: float) -> float:
        """Where the bounds reach delta, between ``at`` - 1 and ``at``.

        Between two multiples of h the divergence is linear in exp(epsilon). What is added to it is below its chord, and
        what is taken off too: on the chord an upper bound stays one, and a lower bound.
        """
        if at == 0:
            return float(losses[0])
        part = (bounds[at - 1] - delta) / (bounds[at - 1] - bounds[at])
        return float(losses[at - 1]) + math.log1p(part * math.expm1(self._interval))

    def _wrapped(self, losses: Array) -> Array:
        """At least the tilted mass that wraps around to above each of the window's ``losses`` (Chernoff).

        It comes from a lap above it, or from below the window. At s above epsilon it would count as exp(-tilt s)
        (1 - exp(-s)), at most 1 / (tilt + 1).
        """
        steeper, lap = (np.array(_STEEPER) - 1) * self._tilt, self._size * self._interval
        log_masses = self._steeper_log_moments - self._log_moment - steeper * lap
        best = int(np.argmin(log_masses - steeper * self._log_moment / self._tilt))  # one for all: a convex function
        above: Array = np.exp(log_masses[best] - steeper[best] * losses)
        return above + math.exp(min(0.0, self._tilt * float(losses[0]) - self._log_moment))

    def _probability_above(self, loss: float) -> float:
        """At least the probability of a sum of ``loss`` or more (Chernoff)."""
        return math.exp(self._log_moment - self._tilt * loss)

    def _rounding_error(self) -> float:
        """What the transforms' rounding may hide from the divergence at e, over exp(log M - tilt * e).

        A transform of size 2^k, with the product after it, errs by 5 k ulp of the Euclidean norm at most (Higham 2002,
        Theorem 24.2, has less than 3.5 k). No factor exceeds 1 and no tilted distribution has a norm above 1, so the
        result errs by count * 5 k ulp in norm. The divergence weighs its entry at e + s by exp(-tilt s) (1 - exp(-s)),
        at most exp(-tilt s) s, and is wrong by the product of the two norms at most (Cauchy and Schwarz).
        """
        error = 5 * math.log2(self._size) * _ULP * (self._count + 1)
        decay = 2 * self._tilt * self._interval
        squared_weights = self._interval**2 * math.exp(-decay) * (1 + math.exp(-decay)) / (-math.expm1(-decay)) ** 3
        return error * math.sqrt(squared_weights)


def _misplaced(counts: Mapping[DominatingPair, int], interval: float) -> float:
    """What rounding errors in the cells may hide from epsilon, to first order.

    Twenty roundings of a tail probability T move 20 T ulp / h over a cell, as would moving all losses near it by
    20 (T / density) ulp / h. In a Gaussian, T / density is at most 1.3 deviations, over which the loss rises by 1.3
    times the pair's steepness.
    """
    return sum(count * 26 * _ULP * pair.steepness / interval for pair, count in counts.items())


def _choose_grid(
    counts: Mapping[DominatingPair, int], deviations: float, delta: float, tolerance: float, bound: float
) -> tuple[list[_Circle], float, float]:
    """A circle for a person removed and one for a person added, the interval, and the epsilon that they are made for.

    That is the Renyi bound, or ``bound``, an earlier result, which is far below it where a rare release costs much:
    the tilted losses near epsilon are then a small part of all. Soundness rests on no part of it.
    """
    times = np.fromiter(counts.values(), dtype=np.float64)
    losses, log_removed, log_added = np.empty((3, len(counts), _NODES))
    for row, pair in enumerate(counts):
        x = np.linspace(*pair.span(deviations), _NODES)
        losses[row] = pair.loss(x)
        log_added[row] = -((x / pair.noise_multiplier) ** 2) / 2
    log_removed[:] = log_added + losses
    chosen = []
    for log_density, signed in ((log_removed, losses), (log_added, -losses)):
        log_density -= _log_sum_exp(log_density)[:, None]
        log_moment = functools.partial(_log_moment, log_density, signed, times)
        chosen.append((log_moment, *_best_tilt(log_moment, delta, bound)))
    expected = max(epsilon for _, _, epsilon in chosen)
    circles, intervals = [], []
    for log_moment, best, epsilon in chosen:
        # Where losses are bounded the best tilt may be infinite; at this one log(1 / delta) over it is a thousandth of
        # epsilon.
        tilt = min(best, -1000 * math.log(delta) / expected)
        reach = -math.log(_WRAPPED * delta) / tilt
        near_epsilon = min(0.0, math.log(delta) + tilt * epsilon - log_moment(tilt))  # of the tilted mass, as a log
        circles.append(_Circle(tilt, reach, max(2 * reach, _length(log_moment, tilt, math.log(_LAP) + near_epsilon))))
        squared = 8 * tolerance * epsilon / (times.sum() * (tilt + 1))
        intervals.append(min(math.sqrt(squared), 0.1 / tilt))
    finest = max(circle.length for circle in circles) / _MOST_POINTS
    return circles, max(finest, min(intervals)), expected


def _log_moment(log_density: Array, losses: Array, times: Array, tilt: float) -> float:
    """log M(tilt) of the sum of n losses, the i-th ``times[i]`` times, by quadrature over [n, nodes]."""
    return float(times @ _log_sum_exp(log_density + tilt * losses))


def _log_sum_exp(exponents: Array) -> Array:
    """Over the last axis, of which one is above -inf: what scipy's is, at a tenth of its cost for so few numbers."""
    most = exponents.max(axis=-1, keepdims=True)
    total: Array = most[..., 0] + np.log(np.exp(exponents - most).sum(axis=-1))
    return total


def _best_tilt(log_moment: Callable[[float], float], delta: float, bound: float) -> tuple[float, float]:
    """A tilt near the saddle point, and about the epsilon, at most ``bound``.

    They are the best order, less one, and the value of the Renyi bound of Canonne, Kamath and Steinke 2020,
    Proposition 12; or the tilt at which that bounds delta best at an epsilon of ``bound``.
    """

    def log_delta(log_tilt: float, epsilon: float) -> float:
        tilt = math.exp(log_tilt)
        return log_moment(tilt) - tilt * epsilon - math.log(tilt + 1) + tilt * math.log(tilt / (tilt + 1))

    def renyi(log_tilt: float) -> float:
        return (log_delta(log_tilt, 0.0) - math.log(delta)) / math.exp(log_tilt)

    search = functools.partial(
        scipy.optimize.minimize_scalar, bounds=_LOG_TILTS, method="bounded", options={"xatol": 0.02}
    )
    best = search(renyi)
    epsilon = max(float(best.fun), _LEAST_EPSILON)
    if bound < epsilon:
        epsilon = max(bound, _LEAST_EPSILON)
        best = search(functools.partial(log_delta, epsilon=epsilon))
    return math.exp(best.x), epsilon


def _length(log_moment: Callable[[float], float], tilt: float, log_lap: float) -> float:
    """From below epsilon to where tilted losses become negligible: one lap brings exp(``log_lap``) of them back.

    log M(t) / t is below the tilted mean, near which epsilon is. The tilted tail is bounded like any tail by moments of
    a higher tilt (Chernoff).
    """
    here = log_moment(tilt)
    ends = [(log_moment(factor * tilt) - here - log_lap) / ((factor - 1) * tilt) for factor in _STEEPER]
    return min(ends) - here / tilt
