"""The epsilon of Gaussian releases without sampling, exactly: what every accountant is held against."""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8, with mu = sensitivity over deviation; the mu^2 of several releases add up."""

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))) - delta

    return float(brentq(excess, 0.0, 1e6, xtol=1e-13)) if excess(0.0) > 0 else 0.0
