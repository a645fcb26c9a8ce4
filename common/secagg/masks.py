"""Masks: keystreams added to a vector modulo a power of two, at memory speed."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..crypto.csprng import BLOCK_BYTES, Stream


def add_masks(vector: NDArray[np.unsignedinteger], *, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add and subtract one-time pads in place, modulo 2^bits of the vector's type.

    ``vector`` has shape [d] and type ``<u2`` or ``<u4``; a mask is the AES-256-CTR stream of a 32-byte key read as
    integers of that type, so that a uniform key makes a uniform mask (Bonawitz et al. 2017, section 4.0.1, with a
    generator in place of its PRG). Needs one block of memory beside the vector, however many masks there are: a block
    of the vector and one of keystream stay in a core's second-level cache while every mask passes over them. One
    thread: the cipher holds the interpreter's lock while it runs.

    >>> vector = np.arange(3, dtype="<u4")
    >>> add_masks(vector, plus=[bytes(32)])
    >>> add_masks(vector, minus=[bytes(32)])
    >>> vector.tolist()
    [0, 1, 2]
    """
    passes = [(np.add, Stream(key)) for key in plus] + [(np.subtract, Stream(key)) for key in minus]
    length = BLOCK_BYTES // vector.itemsize
    mask = np.empty(min(length, len(vector)), dtype=vector.dtype)
    for start in range(0, len(vector), length):
        block = vector[start : start + length]
        keystream = mask[: len(block)]
        target = keystream.data.cast("B")
        for combine, stream in passes:
            stream.fill(target)
            combine(block, keystream, out=block)
