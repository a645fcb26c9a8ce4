"""What a study costs in Renyi divergence, and how much of that a budget allows: for studies chosen one after another.

Whoever sees one study's result may choose the next study by it. Privacy loss distributions of the studies that were
run then do not compose to a bound: which were run depends on the results. A **filter** fixes beforehand what is added
up and what the total may be, and refuses whatever would exceed it. Formal guarantee: as long as the costs at one
order, fixed before the first study, add up to at most the budget, everything released is (epsilon, delta)
differentially private together, whatever was chosen along the way (Rogers, Roth, Ullman and Vadhan 2016 for the
concept; Feldman and Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter", for this one). Adding up the
epsilons and the deltas of studies that are each charged in full is a filter too, and needs no arithmetic from here.
"""

import math
from typing import Final

import numpy as np
from scipy.special import log_ndtr, logsumexp
from scipy.stats import binom

from ..errors import PrivacyError
from .dominating_pair import Array
from .events import SampledGaussianRelease, Schedule

MAX_ORDER: Final = 1024

_REACH: Final = 10.0  # deviations; a Gaussian has less than 2e-23 of its mass beyond
_CELLS: Final = 1 << 16
_CHUNK: Final = 1 << 12
# Of rounding: a double's 2^-53, over sums of numbers of up to a thousand.
_RELATIVE_MARGIN: Final = 1e-9
_MARGIN_PER_ORDER: Final = 1e-11


def rdp_cost(schedule: Schedule, *, order: float) -> float:
    """At least the Renyi divergence, at ``order``, of the whole ``schedule`` for one person added or removed.

    It covers a person at as many sites as the schedule's event states, under either kind of trust. Raises PrivacyError
    unless ``order`` is a whole number from 2 to 1024.
    """
    alpha = _whole(order)
    return sum(_cost(event, count, alpha) for event, count in schedule.events)


def _cost(event: SampledGaussianRelease, count: int, alpha: int) -> float:
    q, m = event.sampling_probability, event.sites_per_patient
    releases = count * (m if event.trust == "local" else 1)
    contributions = m if event.trust == "distributed" else 1
    if q == 1:
        return releases * alpha * (contributions / event.noise_multiplier) ** 2 / 2 * (1 + _RELATIVE_MARGIN)
    loss = _Loss(event, contributions)
    log_moment = loss.log_moment_removed(alpha)
    if contributions > 1:
        log_moment = max(log_moment, loss.log_moment_added(alpha))
    return releases * (log_moment * (1 + _RELATIVE_MARGIN) + _MARGIN_PER_ORDER * alpha) / (alpha - 1)


def rdp_budget(*, epsilon: float, delta: float, order: float) -> float:
    """The largest Renyi divergence at ``order`` that is (``epsilon``, ``delta``), rounded down.

    By Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", Proposition 12: r at order a
    is (r + log((a - 1) / a) - log(delta a) / (a - 1), delta). Raises PrivacyError where no divergence above 0 is, and
    unless ``order`` is a whole number from 2 to 1024.
    """
    alpha = _whole(order)
    if not (0 < delta < 1 and 0 < epsilon < math.inf):
        raise PrivacyError(
            f"a budget of epsilon {epsilon} at delta {delta}",
            why="a budget bounds what may be learnt, and these numbers bound nothing or allow nothing",
            fix="choose an epsilon above 0 and a delta between 0 and 1",
        )
    converted = math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1)
    budget = epsilon - converted - _RELATIVE_MARGIN * (epsilon + abs(converted))
    if budget <= 0:
        raise PrivacyError(
            f"order {alpha} leaves nothing of epsilon {epsilon} at delta {delta}",
            why=f"converting from that order alone costs an epsilon of {converted:.4g}",
            fix="choose a higher order, or a larger epsilon or delta",
        )
    return budget


def _whole(order: float) -> int:
    if not (2 <= order <= MAX_ORDER and order == int(order)):
        raise PrivacyError(
            f"the Renyi order is {order}",
            why="costs are computed exactly at whole orders, and conversion is poor below 2",
            fix=f"choose a whole number from 2 to {MAX_ORDER}, about 1 + 2 log(1 / delta) / epsilon",
        )
    return int(order)


class _Loss:
    """R = P / Q of the dominating pair P = sum_j Binomial(m, q)(j) N(j, z^2), Q = N(0, z^2), with every j kept.

    No neighbouring data sets have larger Renyi divergences: the pair dominates all hockey-stick divergences, hence all
    f-divergences (Zhu, Dong and Wang 2022; Choquette-Choo et al. 2024, Corollary 4.7, for m > 1).
    """

    def __init__(self, event: SampledGaussianRelease, contributions: int) -> None:
        counts = np.arange(contributions + 1)
        self._z = event.noise_multiplier
        self._most = contributions
        self._slopes = counts / self._z**2
        self._offsets = binom.logpmf(counts, contributions, event.sampling_probability) - counts * self._slopes / 2
        self._lowest = float(self._offsets[0])  # of log R, towards which it falls

    def log_moment_removed(self, order: int) -> float:
        """log E_Q R^order, which is (order - 1) times the divergence of P from Q.

        For m = 1 that of Q from P is no larger (Mironov, Talwar and Zhang 2019, "Renyi Differential Privacy of the
        Sampled Gaussian Mechanism", section 3). Expanded, R^order Q is a sum of Gaussians of deviation z around 0 to
        order * m with weights above 0, so that summing it over points half a deviation apart errs by one part in 10^22.
        """
        step = self._z / 2
        points = math.ceil((2 * _REACH * self._z + order * self._most) / step) + 1
        parts = []
        for start in range(0, points, _CHUNK):
            u = -_REACH + np.arange(start, min(start + _CHUNK, points)) / 2  # in deviations
            parts.append(float(logsumexp(order * self._log_ratio(u * self._z) - u**2 / 2)))
        return float(logsumexp(parts)) + math.log(0.5 / math.sqrt(2 * math.pi))

    def log_moment_added(self, order: int) -> float:
        """At least log E_Q R^(1 - order), which is (order - 1) times the divergence of Q from P.

        R rises, so in each cell its value at the left end bounds it; far below, the probability of no contribution.
        """
        power = order - 1
        left = -math.sqrt(_REACH**2 - 2 * power * self._lowest)  # beyond it Q is negligible even with the largest R^-1
        u = np.linspace(left, _REACH, _CELLS + 1)
        parts = [float(log_ndtr(left)) - power * self._lowest]
        for start in range(0, _CELLS, _CHUNK):
            ends = u[start : start + _CHUNK + 1]
            log_masses = _log_masses(ends)
            parts.append(float(logsumexp(log_masses - power * self._log_ratio(ends[:-1] * self._z))))
        parts.append(float(log_ndtr(-_REACH)) - power * float(self._log_ratio(np.array([_REACH * self._z]))[0]))
        return float(logsumexp(parts))

    def _log_ratio(self, x: Array) -> Array:
        ratio: Array = logsumexp(self._offsets + self._slopes * x[:, None], axis=1)
        return ratio


def _log_masses(u: Array) -> Array:
    """log N(0, 1) of the cells [n] between the rising ``u`` [n + 1], exact in both tails."""
    right = u[:-1] > 0
    nearer = np.where(right, log_ndtr(-u[:-1]), log_ndtr(u[1:]))
    farther = np.where(right, log_ndtr(-u[1:]), log_ndtr(u[:-1]))
    masses: Array = nearer + np.log(-np.expm1(farther - nearer))
    return masses
