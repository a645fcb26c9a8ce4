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

from ..crypto.csprng import Stream, derived_key, fresh_key

MIN_STDDEV: Final = 64
MAX_STDDEV: Final = 1 << 30

_PART: Final = 1 << 18  # draws under one key, worth a thread; not to be changed, as that changes what a key draws
_WORDS_LABEL: Final = b"grandrounds/noise/v1/words\n"
_FURTHER_LABEL: Final = b"grandrounds/noise/v1/further\n"
_PART_LABEL: Final = b"grandrounds/noise/v1/part\n"
_MOST_THREADS: Final = 8
_BLOCK: Final = 1 << 13  # draws at a time: every temporary stays in a core's cache
_FAST_LIMIT: Final = 5.0
_GUARD: Final = 2.0**-43
_MAGNITUDE: Final = (1 << 63) - 1
# How many bits mpmath computes with, and the constants that it keeps, are the process's and no thread's own: one that
# is done would leave another with 53 bits, or with a constant at another scale.
_MPMATH: Final = Lock()


def add_rounded_gaussian(vector: NDArray[np.integer], stddev: int, key: bytes | None = None) -> None:
    """Add an independent rounded Gaussian to each element of ``vector`` [d], in place.

    The draws follow from a secret ``key`` of 32 bytes, drawn here where none is given, and from ``stddev``: they are
    the same on every machine, whatever its arithmetic and its number of threads. Integers without a sign are residues
    of 2^bits. Raises ValueError unless ``vector`` holds such or int64, and ``stddev`` is in 64 .. 2^30.
    """
    _combine(np.add, vector, stddev, fresh_key() if key is None else key)


def subtract_rounded_gaussian(vector: NDArray[np.integer], stddev: int, key: bytes) -> None:
    """Take away what ``add_rounded_gaussian`` added under ``key``."""
    _combine(np.subtract, vector, stddev, key)


def _combine(combine: np.ufunc, vector: NDArray[np.integer], stddev: int, key: bytes) -> None:
    if vector.dtype not in (np.int64, np.uint32, np.uint16) or vector.ndim != 1:
        raise ValueError(f"noise is for vectors of int64 or of residues, not for {vector.dtype} of {vector.shape}")
    parts = [vector[start : start + _PART] for start in range(0, len(vector), _PART)]
    keys = [derived_key(key, _PART_LABEL + number.to_bytes(4, "little")) for number in range(len(parts))]
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, _MOST_THREADS, len(parts)))) as pool:
        deque(pool.map(_combine_part, repeat(combine), parts, repeat(stddev), keys), maxlen=0)


def _combine_part(combine: np.ufunc, part: NDArray[np.integer], stddev: int, key: bytes) -> None:
    stream = Stream(derived_key(key, _WORDS_LABEL))

    def further_from(start: int) -> Callable[[int], Callable[[], int]]:
        def further(index: int) -> Callable[[], int]:
            words = Stream(derived_key(key, _FURTHER_LABEL + (start + index).to_bytes(4, "little")))
            return lambda: int(words.words(1)[0])

        return further

    for start in range(0, len(part), _BLOCK):
        block = part[start : start + _BLOCK]
        draws = from_words(stream.words(len(block)), stddev, further_from(start))
        combine(block, draws.astype(block.dtype, copy=False), out=block)


def from_words(
    words: NDArray[np.uint64], stddev: int, further: Callable[[int], Callable[[], int]]
) -> NDArray[np.int64]:
    """The draws [count] that independent uniform 64-bit ``words`` [count] decide: one rounded Gaussian a word.

    ``further(index)`` returns what gives 64 more uniform bits for that draw at each call. It is asked for the few draws
    only that a word leaves open, and each has bits of its own: how exactly a machine computes may decide which are
    open, and not what the others are. Raises ValueError unless ``stddev`` is in 64 .. 2^30.
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
    for index in map(int, np.flatnonzero(~certain)):
        draws[index] = _nearest_integer(int(magnitudes[index]), float(y[index]), stddev, further(index))
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
