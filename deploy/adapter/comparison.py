"""How far apart two models predict, at random tokens: that what was made of an adapter does what the adapter did."""

import math
from typing import TYPE_CHECKING

from ...common.errors import ModelError

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch


def distance(found: "torch.Tensor", expected: "torch.Tensor") -> float:
    """‖found − expected‖ / ‖expected‖ of logits [tokens, vocabulary], each token's taken from their mean.

    A shift of all of a token's logits changes no probability. Infinite where shapes differ or a number is not finite.
    """
    if found.shape != expected.shape:
        return math.inf
    one, other = (logits - logits.mean(-1, keepdim=True) for logits in (found, expected))
    part = float((one - other).norm() / other.norm())
    return part if math.isfinite(part) else math.inf


def require_close(found: "torch.Tensor", expected: "torch.Tensor", *, tolerance: float, what: str, to: str) -> str:
    """How far ``what`` predicts from ``to``, in words. Raises ModelError where that is more than ``tolerance``."""
    apart = distance(found, expected)
    if apart > tolerance:
        raise ModelError(
            f"the logits of {what} differ from those of {to} by {percent(apart)} at {len(expected)} random tokens",
            why=f"it would be another model: rounding makes at most {percent(tolerance)}",
            fix="do not use it, nothing was kept; report it with the base model's name and the versions of peft and "
            "transformers",
        )
    return (
        f"the logits of {what} differ from those of {to} by {percent(apart)} at {len(expected)} random tokens, where "
        f"{percent(tolerance)} is taken for rounding"
    )


def percent(part: float) -> str:
    """A part of one as a percentage of two digits.

    >>> percent(0.0037489), percent(1e-6), percent(math.inf)
    ('0.37 %', '0.0001 %', 'no finite part')
    """
    return (
        f"{float(f'{part * 100:.2g}'):.15f}".rstrip("0").rstrip(".") + " %" if math.isfinite(part) else "no finite part"
    )
