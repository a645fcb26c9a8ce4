"""The most units that one step reads, so that the work of a step is public, and what such a bound costs.

How long a step takes and how much memory it needs grow with its draw, and a server sees when a site answers. So a draw
is cut at a public number of units, and what is seen of a site is that of the largest draw.
"""

from bisect import bisect_left
from typing import Final

# Of a study's delta: what cutting draws may cost.
CUT_SHARE: Final = 1e-3
# Of an incomplete beta function's rounding, relative (DLMF 8.17; the library's own tests hold it to 1e-12).
_MARGIN: Final = 1 + 1e-9


def cut_probability(*, delta: float, releases: int, sites_per_patient: int) -> float:
    """The probability with which a draw may be cut at one site in one release, so that all cost ``CUT_SHARE`` of delta.

    >>> cut_probability(delta=1e-5, releases=100, sites_per_patient=1)
    1e-10
    """
    return delta * CUT_SHARE / (releases * sites_per_patient)


def draw_cap(*, max_units: int, sampling_probability: float, probability: float) -> int:
    """B, the least cap that the draw of a unit's companions reaches with at most ``probability``.

    Of at most ``max_units`` units, each drawn with ``sampling_probability``, a draw of more than B keeps a uniform
    subset of B.

    *Formal guarantee.* Take a unit that is there or not, and let E be the event that in some release the *other* units
    drawn at one of its sites are B or more. Whether E happens depends on their coins alone, so E has the same
    probability p_E on both neighbours, at most releases × sites × ``probability``. Given any coins of the others
    outside E, no draw in which the unit may be is cut, and the releases are those of the uncapped mechanism under these
    coins, whose hockey-stick divergence at epsilon is at most delta(epsilon), since the dominating pair holds for any
    fixed others. The divergence is jointly convex, and never above 1. So the capped mechanism is
    (epsilon, delta(epsilon) + p_E) differentially private, for every epsilon and under either relation. At the unit's
    other sites there is nothing to cut, and at sites without it cutting is the same on both neighbours.

    >>> draw_cap(max_units=30, sampling_probability=0.2, probability=1e-7)
    20
    """
    if sampling_probability == 1:
        return max_units
    from scipy.special import betainc  # it takes long to load, and not everybody draws

    others = max_units - 1

    def is_rare(cap: int) -> bool:
        # P(Binomial(n, q) >= B) is the incomplete beta function I_q(B, n - B + 1); none of n units are n + 1 or more.
        reached = float(betainc(cap, others - cap + 1, sampling_probability)) if cap <= others else 0.0
        return reached * _MARGIN <= probability

    return bisect_left(range(1, max_units), True, key=is_rare) + 1
