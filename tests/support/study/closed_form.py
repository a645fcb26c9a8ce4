"""Closed forms that shipped code is held against: the epsilon of Gaussian releases, and the lemma's slack."""

import math
from collections.abc import Sequence

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8, with mu = sensitivity over deviation; the mu^2 of several releases add up."""

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))) - delta

    return float(brentq(excess, 0.0, 1e6, xtol=1e-13)) if excess(0.0) > 0 else 0.0


def noise_sum_slack(stddevs: Sequence[float], *, dimension: int, releases: int) -> float:
    """What summing rounded Gaussians costs beside one Gaussian of the same total variance: eta in every coordinate.

    ``stddevs`` [h] are the shares'. With slack e, an (epsilon, delta) of the Gaussian mechanism becomes
    (epsilon + 2 e, exp(e) delta). Adding share j to those before it, with S^2 their variance so far and
    tau^2 = S^2 s_j^2 / (S^2 + s_j^2), changes each probability by a factor within 1 -+ theta_j, theta_j =
    2 sum_{m >= 1} exp(-2 pi^2 tau^2 m^2), by Poisson summation; eta = - sum_j log(1 - theta_j) (the lemma in
    common/privacy/MECHANISM.md). From 64 on, the least deviation that the sampler accepts, theta is below
    10^-17000: the result is 0.

    Raises ValueError where the shares are so small that the bound says nothing.
    """
    eta, variance = 0.0, stddevs[0] ** 2
    for stddev in stddevs[1:]:
        decay = 2 * math.pi**2 / (1 / variance + 1 / stddev**2)
        theta = 2 * math.fsum(math.exp(-decay * m * m) for m in range(1, 50))
        if theta >= 1 or decay < 0.5:
            raise ValueError("rounding shapes a share so small too much to compare the sum with a Gaussian")
        eta -= math.log1p(-theta)
        variance += stddev**2
    return dimension * releases * eta
