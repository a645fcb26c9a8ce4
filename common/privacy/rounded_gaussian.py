"""An exact sampler of the rounded Gaussian: round(N(0, stddev^2)) to the nearest integer, from secret random bits.

One draw is a function of an infinite string of fair bits. The first bit is the sign. The others, behind a leading
zero, are the binary expansion of P, so that P is uniform on [0, 1/2) and |X| = stddev * Q^-1(P), where Q is the upper
tail of the standard normal: inversion, exact in real arithmetic. What is drawn is the integer nearest to X.

Fast path. A 64-bit word is the sign and k, which says that k <= 2^64 P < k + 1. The value y = stddev * Q^-1((k + 1/2)
/ 2^64) in double precision differs from |X|, where y < 5 stddev, by less than 2^-43 stddev = 1.13e-13 stddev:

    the bits not yet seen     2^-65 / phi(5)                                        1.8e-14 stddev
    the same, if |X| > y      phi falls beyond 5: less than 1e-13 of the above      0
    k + 1/2 as a double       2^-53 P / phi <= 1.26 * 2^-53                         1.4e-16 stddev
    the inverse of the tail   measured by tests/common/privacy                      1.5e-15 stddev
    the last multiplication   5 * 2^-53                                             5.6e-16 stddev

So where y is further than that from every half-integer, y and |X| round alike. The test is positive: a NaN fails it.

Slow path. Everywhere else more words extend the same P until the complementary error function, evaluated with many
more bits than are known of P, says on which side of each half-integer X lies. Only the order of the work differs: the
result is the same function of the same bits, so no draw is distorted, whatever the share of draws on this path
(at most 2 Q(5) + 2^-42 stddev).
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from threading import Lock
from typing import Final

import mpmath
import numpy as np
import scipy  # each part of it is loaded when it is first asked for
from numpy.typing import NDArray

from ..crypto.csprng import Stream

MIN_STDDEV: Final = 64
MAX_STDDEV: Final = 1 << 30

_LEAST_PART: Final = 1 << 18  # draws that are worth a thread
_MOST_THREADS: Final = 8
_BLOCK: Final = 1 << 13  # draws at a time: every temporary stays in a core's cache
_FAST_LIMIT: Final = 5.0
_GUARD: Final = 2.0**-43
_MAGNITUDE: Final = (1 << 63) - 1
# How many bits mpmath computes with, and the constants that it keeps, are the process's and no thread's own: one that
# is done would leave another with 53 bits, or with a constant at another scale.
_MPMATH: Final = Lock()


def add_rounded_gaussian(total: NDArray[np.int64], stddev: int) -> None:
    """Add an independent rounded Gaussian to each element of ``total`` [d], in place, from fresh secret keys.

    Of a long vector, several threads take a part each, under a key of its own. Raises ValueError unless ``total`` is an
    int64 vector and ``stddev`` is in 64 .. 2^30.
    """
    if total.dtype != np.int64 or total.ndim != 1:
        raise ValueError(f"noise is added to an int64 vector, not to {total.dtype} of shape {total.shape}")
    threads = min(os.cpu_count() or 1, _MOST_THREADS, max(1, len(total) // _LEAST_PART))
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(_add, np.array_split(total, threads), repeat(stddev)), maxlen=0)


def _add(total: NDArray[np.int64], stddev: int) -> None:
    stream = Stream.fresh()
    for start in range(0, len(total), _BLOCK):
        block = total[start : start + _BLOCK]
        block += from_words(stream.words(len(block)), stddev, lambda: int(stream.words(1)[0]))


def from_words(words: NDArray[np.uint64], stddev: int, next_word: Callable[[], int]) -> NDArray[np.int64]:
    """The draws [count] that independent uniform 64-bit ``words`` [count] decide: one rounded Gaussian a word.

    ``next_word`` returns 64 more uniform bits for the draw being decided, and is called only for the few words that
    leave it open. Raises ValueError unless ``stddev`` is in 64 .. 2^30.
    """
    if not MIN_STDDEV <= stddev <= MAX_STDDEV:
        raise ValueError(f"the noise's standard deviation is an integer in 64 .. 2^30, not {stddev}")
    bits = words.astype(np.uint64, copy=False).view(np.int64)
    magnitudes = bits & _MAGNITUDE
    y = magnitudes.astype(np.float64)
    y += 0.5
    y *= 2.0**-64
    scipy.special.ndtri(y, out=y)
    y *= -float(stddev)
    below = np.floor(y)
    fraction = y - below
    certain = (y < _FAST_LIMIT * stddev) & (np.abs(fraction - 0.5) > _GUARD * stddev)
    draws: NDArray[np.int64] = np.where(certain, below + (fraction > 0.5), 0.0).astype(np.int64)
    for index in np.flatnonzero(~certain):
        draws[index] = _nearest_integer(int(magnitudes[index]), float(y[index]), stddev, next_word)
    signs = bits >> 63  # 0 or -1; (n ^ -1) + 1 is -n
    draws ^= signs
    draws -= signs
    return draws


def _nearest_integer(magnitude: int, y: float, stddev: int, next_word: Callable[[], int]) -> int:
    """|X| rounded: the number of half-integers 1/2, 3/2, ... below it, by bisection over exact comparisons."""
    tail = _Tail(magnitude, next_word)
    if 0 <= y < _FAST_LIMIT * stddev:
        # The budget above leaves one half-integer in doubt, the one between floor(y) and floor(y) + 1.
        low, high = int(y), int(y) + 1
    else:
        low, high = 0, 16 * stddev
        while tail.is_below(high - 0.5, stddev):
            low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if tail.is_below(middle - 0.5, stddev):
            low = middle
        else:
            high = middle
    return high if tail.is_below(high - 0.5, stddev) else low


class _Tail:
    """P, the upper-tail probability of one draw, known to as many bits as its comparisons have needed."""

    def __init__(self, magnitude: int, next_word: Callable[[], int]) -> None:
        self._numerator = magnitude
        self._bits = 64
        self._next_word = next_word

    def _extend(self) -> None:
        self._numerator = self._numerator << 64 | self._next_word()
        self._bits += 64

    def is_below(self, half_integer: float, stddev: int) -> bool:
        """Whether P < Q(half_integer / stddev), which is whether |X| exceeds the half-integer."""
        while True:
            with _MPMATH, mpmath.workprec(self._bits + 64):
                quantile = mpmath.mpf(half_integer) / stddev
                threshold = mpmath.ldexp(mpmath.erfc(quantile / mpmath.sqrt(2)) / 2, self._bits)
                # The threshold carries 64 bits more than P; a margin of 2^-16 of P's last bit is 2^40 times its error.
                margin = mpmath.ldexp(1, -16)
                if self._numerator + 1 <= threshold - margin:
                    return True
                if self._numerator >= threshold + margin:
                    return False
            self._extend()
