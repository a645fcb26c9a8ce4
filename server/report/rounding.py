"""How numbers are written: one rounding for each kind, wherever people read it."""

import math
from collections.abc import Mapping
from typing import Final

_LARGEST_IN_DIGITS: Final = 6  # powers of ten


def up(value: float, digits: int = 2) -> str:
    """An upper bound, rounded up: every ε.

    >>> up(3.9912)
    '4.00'
    """
    # Without the inner rounding, 4 * 10**2 with an error in its last bit would become 401.
    return f"{math.ceil(round(value * 10**digits, 6)) / 10**digits:.{digits}f}"


def down(value: float, digits: int = 2) -> str:
    """A lower bound, rounded down: what an audit found.

    >>> down(3.0891)
    '3.08'
    """
    return f"{math.floor(round(value * 10**digits, 6)) / 10**digits:.{digits}f}"


def bound(value: float | None) -> str:
    """An upper bound that may be missing.

    >>> bound(3.9912), bound(None)
    ('4.00', 'no bound')
    """
    return "no bound" if value is None else up(value)


def area(found: Mapping[str, float]) -> str:
    """An area under a ROC curve, with the ends of its interval.

    >>> area({"value": 0.7, "low": 0.531, "high": 0.83})
    '0.70 (0.53–0.83)'
    """
    return f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def share(found: Mapping[str, float]) -> str:
    """A share in whole percent, with the ends of its interval.

    >>> share({"value": 0.1, "low": 0.02, "high": 0.291})
    '10 % (2–29 %)'
    """
    return f"{100 * found['value']:.0f} % ({100 * found['low']:.0f}–{100 * found['high']:.0f} %)"


def number(value: float | None) -> str:
    """A measured or chosen figure to three digits.

    >>> number(9.1), number(54.26), number(None)
    ('9.1', '54.3', 'no finite figure')
    """
    if value is None:
        return "no finite figure"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def estimate(figures: Mapping[str, float] | None) -> str:
    """A figure of three decimals with the ends of its interval.

    >>> estimate({"value": 0.21, "low": -0.1, "high": 0.52}), estimate(None)
    ('+0.210 [−0.100, +0.520]', '–')
    """
    if figures is None:
        return "–"
    value, low, high = (f"{figures[name]:+.3f}".replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def precise(value: float) -> str:
    """A figure that the claim is computed from, to five digits.

    >>> precise(0.860021)
    '0.86002'
    """
    return f"{value:.5g}"


def percent(share: float) -> str:
    """A share as a percentage, rounded up to one decimal.

    >>> percent(0.10871), percent(0.01)
    ('10.9 %', '1 %')
    """
    return f"{math.ceil(round(share * 1000, 6)) / 10:g} %"


def odds_factor(epsilon: float) -> str:
    """e^ε, rounded up.

    >>> odds_factor(0.5), odds_factor(4.0), odds_factor(20.0)
    ('1.7', '55', '10⁹')
    """
    exponent = math.ceil(epsilon / math.log(10))
    if exponent > _LARGEST_IN_DIGITS:
        return _power_of_ten(exponent)
    factor = math.exp(epsilon)
    return up(factor, 1) if factor < 10 else f"{math.ceil(factor):,}"


def probability(value: float) -> str:
    """A small probability as people write it: every δ.

    >>> probability(1e-05), probability(0.0005)
    ('10⁻⁵', '0.0005')
    """
    exponent = math.log10(value)
    return _power_of_ten(int(exponent)) if exponent.is_integer() else f"{value:g}"


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
