"""What an adversary makes of what it saw: how much likelier each canary is to be in than not to be."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.csprng import Stream, derived_key

# Directions by which noise is measured, for each release, that it takes to tell how releases go together.
_ENOUGH: Final = 10
# Below what rounding leaves of a canary in another's direction.
_LEAST_VARIANCE: Final = 1e-12
_LOT: Final = 1e-3
_LOTS_LABEL: Final = b"grandrounds/audit/v1/lots\n"
_LEAST_SHARE: Final = 1e-9  # of the noise's variance: what is taken to be there at least


def likelihood_ratios(
    seen: NDArray[np.float64], *, gauges: NDArray[np.float64], sampling_probability: float, copies: int
) -> NDArray[np.float64]:
    """The log-likelihood ratio of each direction [directions], of what was ``seen`` of it [releases, directions].

    The optimal test between a unit's presence and its absence (Neyman and Pearson 1933), where a release is a mixture:
    to a Gaussian of mean 0 a unit adds j with probability Binomial(copies, q)(j). How wide the noise is, and how
    releases go together, is measured by ``gauges`` [releases, others], directions of nobody. The ratio is taken of the
    releases as they are, and of each without what the others tell of its noise, so that a draw that was used twice is
    taken off; the larger counts. Where noise is as claimed the two are the same, and exact but for what the measurement
    errs by. It is a score like any other: a bound that is made of it rests on nothing here.
    """
    from scipy.stats import binom

    with np.errstate(divide="ignore"):  # at q = 1 nobody is not drawn
        prior = np.log(binom.pmf(np.arange(copies + 1), copies, sampling_probability))
    variances = np.maximum(np.square(gauges).mean(axis=1), _LEAST_VARIANCE)
    ratios = _ratios(seen, 1 / variances, prior)
    releases, others = gauges.shape
    if others < _ENOUGH * releases:
        return ratios
    precision = np.linalg.inv(gauges @ gauges.T / others + _LEAST_SHARE * np.diag(variances))
    weights = np.diag(precision)
    return np.maximum(ratios, _ratios(precision @ seen / weights[:, None], weights, prior))


def _ratios(
    seen: NDArray[np.float64], precisions: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Those of releases [releases, directions] whose noise is independent and of such ``precisions`` [releases]."""
    from scipy.special import logsumexp

    counts = np.arange(len(prior))[:, None, None]
    terms = prior[:, None, None] + precisions[:, None] * (counts * seen - 0.5 * counts**2)
    ratios: NDArray[np.float64] = logsumexp(terms, axis=0).sum(axis=0)
    return ratios


def told_apart(scores: NDArray[np.float64], *, seed: bytes) -> NDArray[np.float64]:
    """The scores [directions] with a lot below a thousandth added to each, so that equal ones stand in a fair order.

    Where there is no noise all who were not drawn have the same score. The lots follow from ``seed`` alone.
    """
    lots = Stream(derived_key(seed, _LOTS_LABEL)).words(len(scores))
    return scores + _LOT * lots / 2.0**64
