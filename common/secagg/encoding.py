"""From updates to integers modulo 2^bits and back, so that a sum of them never wraps."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import StudyError

ModulusBits = Literal[16, 32]
_BLOCK = 1 << 15


def residue_dtype(modulus_bits: int) -> np.dtype[np.unsignedinteger]:
    """The little-endian unsigned type whose arithmetic is that of the integers modulo 2^bits."""
    return np.dtype({16: "<u2", 32: "<u4"}[modulus_bits])


def residues(noisy_sum: NDArray[np.signedinteger], modulus_bits: int) -> NDArray[np.unsignedinteger]:
    """A site's noisy integers modulo 2^bits, shape [d], and nothing else.

    Under distributed trust this is the whole encoding: to clip or quantise here would act on one share of the noise.

    >>> residues(np.array([-1, 2**32 + 5]), 32).tolist()
    [4294967295, 5]
    """
    return noisy_sum.astype(residue_dtype(modulus_bits))


def centred(aggregate: NDArray[np.unsignedinteger]) -> NDArray[np.signedinteger]:
    """The representative in [-2^(bits-1), 2^(bits-1)) of each residue, shape [d]: the same bytes, not copied.

    >>> centred(np.array([65535, 32767, 32768], dtype="<u2")).tolist()
    [-1, 32767, -32768]
    """
    return aggregate.view(f"<i{aggregate.itemsize}")


def sum_of_squares(integers: NDArray[np.signedinteger]) -> int:
    """The exact sum of the squares of integers [d] of at most 32 bits, whatever order they are added in.

    >>> sum_of_squares(np.array([3, -4, 2**31 - 1])) == 25 + (2**31 - 1) ** 2
    True
    """
    total = 0
    for start in range(0, len(integers), _BLOCK):
        high, low = np.divmod(integers[start : start + _BLOCK].astype(np.int64), 1 << 16)
        for product, place in ((high * high, 32), (2 * high * low, 16), (low * low, 0)):
            total += int(product.sum()) << place
    return total


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Fixed point for updates that are already private: transport and no mechanism.

    A site sends its update, clipped to ±``update_range``, times its share of the total weight. Shares add up to at
    most 1 and each of ``sites`` rounds by at most a half, so the scale leaves room for both and no sum can wrap.
    """

    modulus_bits: ModulusBits
    update_range: float
    sites: int

    def __post_init__(self) -> None:
        """Raises StudyError if nothing would be left of an update."""
        if not (np.isfinite(self.update_range) and self.update_range > 0):
            raise StudyError(
                f"update_range is {self.update_range}",
                why="updates are clipped to it before they are sent",
                fix="choose the largest change of an adapter entry that one round should make, for example 0.1",
            )
        if not 1 <= self.sites <= 1 << 12:
            raise StudyError(
                f"fixed point for {self.sites} sites", why="rounding errors of all sites share 16 bits", fix="1 to 4096"
            )

    @property
    def scale(self) -> float:
        """Integers per unit of the update."""
        return ((1 << self.modulus_bits - 1) - 1 - self.sites / 2) / self.update_range

    def encode(self, update: NDArray[np.float64], share: float) -> NDArray[np.unsignedinteger]:
        """The site's integers, shape [d]. ``share`` is its part of the sites' total nominal units, in (0, 1].

        What is not a number counts as zero: a fault in the data must not change whether a message is sent.
        """
        if not 0 < share <= 1:
            raise ValueError(f"a site's share of the total is in (0, 1], not {share}")
        encoded = np.empty(len(update), dtype=residue_dtype(self.modulus_bits))
        block = np.empty(min(_BLOCK, len(update)))
        for start in range(0, len(update), _BLOCK):
            values = update[start : start + _BLOCK]
            scaled = np.clip(values, -self.update_range, self.update_range, out=block[: len(values)])
            scaled[np.isnan(scaled)] = 0.0
            scaled *= share * self.scale
            encoded[start : start + _BLOCK] = np.rint(scaled, out=scaled).astype(np.int64)
        return encoded

    def decode(self, aggregate: NDArray[np.signedinteger]) -> NDArray[np.float64]:
        """The weighted sum of the updates, shape [d], from the centred sum."""
        return aggregate / self.scale
