"""The privacy loss of a release to which one person contributes at several places, in one vectorised pass."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy.special import log_ndtr, logsumexp, ndtr
from scipy.stats import binom

from .dominating_pair import Array, where_sum_reaches

_NEGLIGIBLE: Final = 1e-24  # a probability far below every delta; what lies beyond it counts as a certain loss
_TAIL_DEVIATIONS: Final = 10.2  # Q(10.2) < 1e-24
_CHUNK: Final = 1 << 14


def binomial_mixture_pld(
    *, noise_multiplier: float, contributions: int, sampling_probability: float, interval: float
) -> PrivacyLossDistribution:
    """The pessimistic privacy loss distribution, on multiples of ``interval``, of one release with m contributions.

    One person contributes at each of ``contributions`` = m places with ``sampling_probability`` = q < 1, independently,
    each time a vector of norm at most 1, to one sum under Gaussian noise of deviation ``noise_multiplier`` = z.

    Guarantee: the pair N(0, z^2) and sum_j Binomial(m, q)(j) N(j, z^2) dominates, in both directions (Choquette-Choo
    et al. 2024, Privacy Amplification for Matrix Mechanisms, Corollary 4.7). The discretisation is Connect-the-Dots
    (Doroshenko et al. 2022, Algorithm 1), dp_accounting's own; only the hockey-stick divergences are computed here,
    because its root search takes minutes where this takes a second. Its grid may end anywhere: the divergence at its
    upper end becomes the probability of an infinite loss, and what lies below its lower end counts as that end. It
    ends with the counts that are at all likely, because the loss of m contributions grows as m^2.
    """
    pair = _Pair(noise_multiplier, contributions, sampling_probability)
    reach = _TAIL_DEVIATIONS * noise_multiplier
    removal = _pmf(pair.removal_delta, pair.loss(-reach), pair.loss(pair.most + reach), interval)
    addition = _pmf(pair.addition_delta, -pair.loss(reach), -pair.loss(-reach), interval)
    return PrivacyLossDistribution(removal, addition)


def _pmf(delta: Callable[[Array], Array], lowest: float, highest: float, interval: float) -> pld_pmf.PLDPmf:
    lower, upper = math.floor(lowest / interval), math.ceil(highest / interval)
    epsilons = interval * np.arange(lower, upper + 1, dtype=np.float64)
    deltas: Array = np.concatenate([delta(epsilons[i : i + _CHUNK]) for i in range(0, len(epsilons), _CHUNK)])
    # Rounding errors may make a delta dip; the divergence never rises with epsilon, so the later maximum is safe.
    deltas = np.maximum.accumulate(np.clip(deltas, 0.0, 1.0)[::-1])[::-1]
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lower, upper, deltas)


class _Pair:
    """The dominating pair P = sum_j p_j N(j, z^2), Q = N(0, z^2), and upper bounds on its divergences both ways.

    Counts j above ``most`` have a probability of at most 1e-24 in all and are left out of P, which leaves P' <= P. So
    P(S) - e^epsilon Q(S) <= P'(S) - e^epsilon Q(S) + P(j > most), and Q(S) - e^epsilon P(S) <= Q(S) - e^epsilon P'(S).
    """

    def __init__(self, noise_multiplier: float, contributions: int, sampling_probability: float) -> None:
        counts = np.arange(contributions + 1)
        log_weights = binom.logpmf(counts, contributions, sampling_probability)
        at_least = np.cumsum(np.exp(log_weights)[::-1])[::-1]  # each count
        self.most = max(1, int(np.count_nonzero(at_least > _NEGLIGIBLE)) - 1)
        self._beyond = float(np.exp(log_weights[self.most + 1 :]).sum())
        counts, log_weights = counts[: self.most + 1], log_weights[: self.most + 1]
        self._z = noise_multiplier
        self._counts = counts.astype(np.float64)
        self._log_weights = log_weights
        self._log_weight_of_none = float(log_weights[0])
        # log p_j N(x; j, z^2) / N(x; 0, z^2) = offset_j + slope_j x
        self._slopes = self._counts / noise_multiplier**2
        self._offsets = log_weights - self._counts**2 / (2 * noise_multiplier**2)

    def loss(self, x: float) -> float:
        """log P(x) / Q(x), which rises with x from log p_0."""
        return float(logsumexp(self._offsets + self._slopes * x))

    def removal_delta(self, epsilons: Array) -> Array:
        """At least sup over sets S of P(S) - e^epsilon Q(S), for each of ``epsilons`` [n]."""
        deltas = -np.expm1(np.minimum(epsilons, 0.0))  # below log p_0 < 0 the supremum is over everything
        rising = epsilons > self._log_weight_of_none
        threshold = self._inverse_loss(epsilons[rising])
        above = ndtr((self._counts - threshold[:, None]) / self._z) @ np.exp(self._log_weights)
        deltas[rising] = above - np.exp(epsilons[rising] + log_ndtr(-threshold / self._z)) + self._beyond
        return deltas

    def addition_delta(self, epsilons: Array) -> Array:
        """At least sup over sets S of Q(S) - e^epsilon P(S), for each of ``epsilons`` [n]."""
        deltas = np.zeros_like(epsilons)  # from -log p_0 on, Q is nowhere above e^epsilon P
        falling = -epsilons > self._log_weight_of_none
        threshold = self._inverse_loss(-epsilons[falling])
        log_below = logsumexp(self._log_weights + log_ndtr((threshold[:, None] - self._counts) / self._z), axis=1)
        deltas[falling] = ndtr(threshold / self._z) - np.exp(epsilons[falling] + log_below)
        return deltas

    def _inverse_loss(self, losses: Array) -> Array:
        """The x [n] at which the loss is each of ``losses`` [n], all above log p_0.

        An error e in x lowers the divergence by O(e^2) only, since x maximises it.
        """
        targets = losses + np.log(-np.expm1(self._log_weight_of_none - losses))
        return where_sum_reaches(targets, self._offsets[1:], self._slopes[1:])
