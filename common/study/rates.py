"""What follows from a round's number: the learning rate of its step, and its weight in the average of the rounds.

Computed by exact fractions and rounded once, or by + − × ÷ √ on IEEE numbers: the same bits on every machine.
"""

import functools
import math
from fractions import Fraction
from typing import Final, Literal

Decay = Literal["none", "linear", "cosine", "inverse-sqrt"]
Averaging = Literal["none", "mean", "ema"]

_PI: Final = Fraction(314159265358979323846264338327950288419716939937510, 10**50)
_TERMS: Final = 28  # of the cosine's series up to π: what they leave out is below 1e-45


def rate_factor(decay: Decay, round_: int, *, rounds: int, warmup_rounds: int = 0) -> float:
    """What a rate is multiplied by in ``round_``, 1 the first.

    It rises evenly over ``warmup_rounds``, is 1 in the round after them, and decays from there. ``linear`` and
    ``cosine`` would be at 0 in the round after the last (Loshchilov and Hutter 2017, equation 5); ``inverse-sqrt`` is
    one over the root of how many rounds there were since the rise.

    >>> [rate_factor("linear", round_, rounds=5, warmup_rounds=1) for round_ in range(1, 6)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if round_ <= warmup_rounds:
        return round_ / (warmup_rounds + 1)
    done, steps = round_ - warmup_rounds - 1, rounds - warmup_rounds
    match decay:
        case "none":
            return 1.0
        case "linear":
            return (steps - done) / steps
        case "cosine":
            return _half_cosine(Fraction(done, steps))
        case "inverse-sqrt":
            return 1 / math.sqrt(done + 1)


def average_weight(averaging: Averaging, round_: int, *, rounds: int, averaged_rounds: int) -> float:
    """The w of average ← average + w × (adapter − average) after ``round_``; 1 where the average is the adapter itself.

    ``mean`` weighs the adapters of the last ``averaged_rounds`` alike (Polyak and Juditsky 1992; of checkpoints under
    differential privacy, Shejwalkar et al. 2022). ``ema`` decays at the rate at which a mean of so many has the
    same age, 2 / (N + 1), and weighs all rounds alike until there are enough (De et al. 2022).

    >>> [average_weight("mean", round_, rounds=4, averaged_rounds=3) for round_ in range(1, 5)]
    [1.0, 1.0, 0.5, 0.3333333333333333]
    """
    match averaging:
        case "none":
            return 1.0
        case "mean":
            return 1 / max(1, round_ - (rounds - averaged_rounds))
        case "ema":
            return max(1 / round_, 2 / (averaged_rounds + 1))


@functools.cache
def _half_cosine(part: Fraction) -> float:
    """(1 + cos(π × part)) / 2 from the cosine's series, for a part from 0 to 1."""
    square = (_PI * part) ** 2
    cosine, term = Fraction(0), Fraction(1)
    for number in range(_TERMS):
        cosine += term
        term *= -square / ((2 * number + 1) * (2 * number + 2))
    return float((1 + cosine) / 2)
