"""What a unit's gradient is multiplied by before it is rounded, so that no unit counts for more than another may."""

from typing import Any, Final, Literal, TypeVar

Clipping = Literal["norm", "auto"]
# γ of automatic clipping, as its authors have it.
STABILITY: Final = 0.01

Norms = TypeVar("Norms", bound=Any)  # an array of NumPy or a tensor of torch


def clipping_factors(norms: Norms, clipping: Clipping, *, clipping_norm: float) -> Norms:
    """The factors of gradients of these ``norms``, by + and ÷ alone: the same bits on every device.

    ``norm`` cuts to C what is longer (Abadi et al. 2016, algorithm 1). ``auto`` brings each near C, g · C / (‖g‖ + γ),
    so that short gradients count as much as long ones, and C does no more than scale the learning rate (Bu et al. 2023,
    AUTO-S). Neither leaves more than C. The claim rests on neither, but on the check of the integers that follow.
    """
    divisors = norms + STABILITY if clipping == "auto" else norms.clip(min=clipping_norm)
    factors: Norms = clipping_norm / divisors
    return factors
