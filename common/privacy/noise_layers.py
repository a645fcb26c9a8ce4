"""The layers of a site's noise, and what is taken off: apart from the mechanism, whose sampler loads scipy.

A sum may have the inputs of no more than t sites, and what each adds must then be enough. Where s last, the noise of
all s is in the sum, s / (t - c) times what is claimed. So a site adds the share that is due where all n last, and
for each smaller number a layer more, which the server takes off again when it may (``common/secagg/PROTOCOL.md``; the
idea is Dordis's, Jiang et al. 2024, arXiv:2209.12528, here with one secret a site).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

from .trust import Trust

# Up to so many sites each number of survivors has its layer; beyond, a few have, since each is drawn once more.
_EACH_HAS_ITS_LAYER: Final = 10
_HALVINGS: Final = 3


@dataclass(frozen=True, kw_only=True)
class NoiseLayer:
    """Noise of deviation ``stddev``, in lattice steps, that is taken off where ``level`` sites or more are in a sum."""

    level: int
    stddev: int


def noise_levels(*, sites: int, threshold: int) -> tuple[int, ...]:
    """The numbers of survivors above the threshold at which a layer is taken off, rising; the last is all sites.

    Beyond ten sites the threshold's distance from all is halved three times: few are often away, and seldom many.

    >>> noise_levels(sites=5, threshold=4), noise_levels(sites=10, threshold=7), noise_levels(sites=3, threshold=3)
    ((5,), (8, 9, 10), ())
    >>> noise_levels(sites=20, threshold=14), noise_levels(sites=50, threshold=34)
    ((17, 19, 20), (42, 46, 48, 50))
    """
    away = sites - threshold
    if sites <= _EACH_HAS_ITS_LAYER:
        return tuple(range(threshold + 1, sites + 1))
    levels = {sites, *(sites - (away >> halvings) for halvings in range(1, _HALVINGS + 1))}
    return tuple(sorted(levels)) if away else ()


def noise_over_claim(survivors: int, *, trust: Trust, sites: int, threshold: int, corrupt_sites: int) -> float:
    """The deviation of the noise in a sum over so many ``survivors``, over the z Delta that is claimed.

    Where every survivor shows the layers that may be taken off.

    >>> [f"{noise_over_claim(s, trust='distributed', sites=5, threshold=4, corrupt_sites=1):.3f}" for s in (4, 5)]
    ['1.155', '1.118']
    """
    if trust == "local":
        return math.sqrt(survivors)
    levels = (threshold, *noise_levels(sites=sites, threshold=threshold))
    return math.sqrt(survivors / (max(level for level in levels if level <= survivors) - corrupt_sites))


def noise_shares(*, trust: Trust, sites: int, threshold: int, corrupt_sites: int) -> tuple[Fraction, ...]:
    """How many times a site's base, and then each layer, would have to be there for the whole variance (z Delta)^2.

    Base: n - c. Of the layer at level k, above level k': 1 / (1/(k' - c) - 1/(k - c)). Base and all layers above some
    level k thus add up to a share of 1 / (k - c). Under local trust the base is all, and no layer is ever taken off.
    """
    if trust == "local":
        return (Fraction(1),)
    levels = (threshold, *noise_levels(sites=sites, threshold=threshold))
    between = [
        Fraction((below - corrupt_sites) * (level - corrupt_sites), level - below) for below, level in pairwise(levels)
    ]
    return (Fraction(levels[-1] - corrupt_sites), *between)
