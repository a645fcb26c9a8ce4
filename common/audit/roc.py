"""What an attack's scores of members and of others come to: how often it is right, with intervals. No torch."""

import math
from statistics import NormalDist
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ..schema import Section

Scores = NDArray[np.float64]

_HALVINGS: Final = 60


class Estimate(Section):
    """A share or a probability, with the ends of an interval around it."""

    value: float
    low: float
    high: float


def share(hits: int, of: int, *, confidence: float) -> Estimate:
    """``hits`` of some trials, with the exact interval (Clopper and Pearson 1934): it covers at least as often."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    return Estimate(
        value=hits / of,
        low=float(betaincinv(hits, of - hits + 1, tail)) if hits else 0.0,
        high=float(betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0,
    )


def auc(members: Scores, others: Scores, *, confidence: float) -> Estimate:
    """The probability that a member's score is above another's, ties by half: the area under the ROC curve.

    The interval's ends are the θ for which the estimate is z standard errors away, with the variance of Hanley and
    McNeil (1982) at θ (Newcombe 2006, method 5): unlike one around the estimate, it has a width where all members are
    above all others.
    """
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, members, side=side).sum() for side in ("left", "right"))
    value = float(below + up_to) / (2 * len(members) * len(others))
    z = -NormalDist().inv_cdf((1 - confidence) / 2)  # not of (1 + confidence) / 2, which rounds to 1

    def is_near(theta: float) -> bool:
        halved = (len(members) + len(others)) / 2 - 1
        spread = 1 + halved * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 <= z * z * theta * (1 - theta) * spread / (len(members) * len(others))

    def end(far: float) -> float:
        near = value
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            near, far = (middle, far) if is_near(middle) else (near, middle)
        return far

    return Estimate(value=value, low=end(0.0), high=end(1.0))


class Detection(Section):
    """At the score that at most ``false_alarm_rate`` of the others are above: how many members are above it, too.

    Where there are fewer others than one in that rate, nobody of them is above it, and ``false_alarms`` shows how
    little that says.
    """

    false_alarm_rate: float
    members: Estimate
    false_alarms: Estimate

    @classmethod
    def at(cls, false_alarm_rate: float, members: Scores, others: Scores, *, confidence: float) -> Self:
        """Both intervals are exact for a score that was chosen without looking at whom it is counted on."""
        allowed = math.floor(false_alarm_rate * len(others) + 1e-9)
        threshold = np.sort(others)[len(others) - 1 - allowed]
        return cls(
            false_alarm_rate=false_alarm_rate,
            members=share(int((members > threshold).sum()), len(members), confidence=confidence),
            false_alarms=share(int((others > threshold).sum()), len(others), confidence=confidence),
        )
