"""Figures that people will read and write again."""

import math


def two_digits_up(value: float) -> float:
    """``value``, above 0, rounded up to two digits.

    >>> two_digits_up(0.4312), two_digits_up(38.0), two_digits_up(101.0)
    (0.44, 38.0, 110.0)
    """
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    # The inner rounding keeps an error in the last bit from becoming a whole digit.
    return float(f"{math.ceil(round(value / digit, 6)) * digit:.2g}")
