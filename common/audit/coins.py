"""Fair coins by which canaries are in or out: of the audit's seed, so that nobody picks them once scores are known."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..crypto.csprng import Stream, derived_key
from .bounds import Kind

_TEXT: Final = b"grandrounds/audit/v1/text-coins\n"
_LABELS: Final[dict[Kind, bytes]] = {
    "gradient": b"grandrounds/audit/v1/bits\n",
    "text": _TEXT,
    "synthetic notes": _TEXT,  # the same canaries, scored once more
}


def coins(kind: Kind, count: int, *, seed: bytes) -> NDArray[np.uint64]:
    """A word for each canary, uint64 [count], whose last bit says whether it is in; the rest may say where."""
    return Stream(derived_key(seed, _LABELS[kind])).words(count)


def bits_of(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which canaries are in, bool [count]."""
    return (words & np.uint64(1)).astype(bool)
