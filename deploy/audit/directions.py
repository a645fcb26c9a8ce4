"""Directions that canaries point in: as many as the adapter has numbers, each at a right angle to all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.csprng import Stream, derived_key

_SIGNS_LABEL: Final = b"grandrounds/audit/v1/signs\n"
_ORDER_LABEL: Final = b"grandrounds/audit/v1/order\n"


@dataclass(frozen=True, kw_only=True)
class Directions:
    """The rows of a discrete cosine transform of ``dimension``, under random signs, in a random order.

    Each is a unit vector whose every number is as large as any other's on average, as a random one's; but they are
    exactly orthogonal, so that of several canaries none is seen in another's direction, and isotropic noise is
    independent in all of them. Signs and order follow from ``seed``, of 32 bytes. Nothing of privacy rests on it.
    """

    dimension: int
    seed: bytes

    def rows(self, numbers: Sequence[int]) -> NDArray[np.float64]:
        """The unit vectors of these numbers, [numbers, d]."""
        from scipy.fft import idct

        chosen = np.zeros((len(numbers), self.dimension))
        chosen[np.arange(len(numbers)), self._order[list(numbers)]] = 1.0
        rows: NDArray[np.float64] = idct(chosen, axis=1, norm="ortho", overwrite_x=True)
        rows *= self._signs
        return rows

    def coordinates(self, vector: NDArray[np.signedinteger], count: int) -> NDArray[np.float64]:
        """The inner products [count] of a vector [d] with the first ``count`` of them."""
        from scipy.fft import dct

        products: NDArray[np.float64] = dct(vector * self._signs, norm="ortho", overwrite_x=True)
        return products[self._order[:count]]

    @cached_property
    def _signs(self) -> NDArray[np.float64]:
        words = Stream(derived_key(self.seed, _SIGNS_LABEL)).words(-(-self.dimension // 64))
        bits = np.unpackbits(words.view(np.uint8), count=self.dimension)
        return 1.0 - 2.0 * bits.astype(np.float64)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(Stream(derived_key(self.seed, _ORDER_LABEL)).words(self.dimension))
