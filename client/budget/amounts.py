"""Amounts of a privacy budget as whole trillionths: they add up exactly, and are rounded against the spender."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from fractions import Fraction
from typing import Final, Self

TRILLION: Final = 10**12
_DIGITS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Trillionths of ε, of δ, and of a Rényi divergence (at the order that the data asset fixed).

    >>> tenth = Amounts.rounded_up(epsilon=0.1, delta=1e-6)
    >>> sum([tenth] * 10, Amounts()) == Amounts.rounded_down(epsilon=1.0, delta=1e-5)
    True
    """

    epsilon: int = 0
    delta: int = 0
    rdp: int = 0

    @classmethod
    def rounded_up(cls, *, epsilon: float, delta: float, rdp: float = 0.0) -> Self:
        """What is spent. A number means the decimal that it is written as: 0.1 is a tenth."""
        return cls._rounded(math.ceil, epsilon, delta, rdp)

    @classmethod
    def rounded_down(cls, *, epsilon: float, delta: float, rdp: float = 0.0) -> Self:
        """What may be spent."""
        return cls._rounded(math.floor, epsilon, delta, rdp)

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(epsilon=self.epsilon + other.epsilon, delta=self.delta + other.delta, rdp=self.rdp + other.rdp)

    @classmethod
    def _rounded(cls, whole: Callable[[Fraction], int], *values: float) -> Self:
        epsilon, delta, rdp = (whole(Fraction(str(value)) * TRILLION) for value in values)
        return cls(epsilon=epsilon, delta=delta, rdp=rdp)


def shown_up(amount: int) -> str:
    """Trillionths as a decimal of four digits, rounded up.

    >>> shown_up(3_995_700_000_001), shown_up(10_000_000)
    ('3.996', '1e-05')
    """
    return _shown(amount, ROUND_CEILING)


def shown_down(amount: int) -> str:
    """Trillionths as a decimal of four digits, rounded down.

    >>> shown_down(3_995_700_000_001), shown_down(0)
    ('3.995', '0')
    """
    return _shown(amount, ROUND_FLOOR)


def _shown(amount: int, rounding: str) -> str:
    decimal = Context(prec=_DIGITS, rounding=rounding).create_decimal(amount)
    return f"{float(decimal.scaleb(-12)):.{_DIGITS}g}"
