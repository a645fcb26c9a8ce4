"""Masks cancel exactly, are the keystream, and need one block."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.common.crypto.csprng import BLOCK_BYTES, Stream
from grandrounds.common.secagg.encoding import residue_dtype
from grandrounds.common.secagg.masks import add_masks

KEYS = [bytes([i]) * 32 for i in range(5)]


@pytest.mark.parametrize("modulus_bits", [16, 32])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_mask_is_its_key_s_stream_over_block_boundaries(modulus_bits: int, excess: int) -> None:
    dtype = residue_dtype(modulus_bits)
    vector = np.zeros(2 * BLOCK_BYTES // dtype.itemsize + excess, dtype=dtype)
    add_masks(vector, plus=KEYS[:1])
    stream = bytearray(vector.nbytes)
    Stream(KEYS[0]).fill(memoryview(stream))
    assert vector.tobytes() == bytes(stream)


@settings(max_examples=30)
@given(
    values=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50),
    modulus_bits=st.sampled_from([16, 32]),
    order=st.permutations(KEYS),
)
def test_what_is_added_is_removed_exactly_in_any_order(
    values: list[int], modulus_bits: int, order: list[bytes]
) -> None:
    vector = np.array(values, dtype=residue_dtype(modulus_bits))
    add_masks(vector, plus=KEYS[:3], minus=KEYS[3:])
    add_masks(vector, plus=[key for key in order if key in KEYS[3:]], minus=[key for key in order if key in KEYS[:3]])
    assert vector.tolist() == values


def test_a_mask_left_in_changes_every_part_of_the_vector() -> None:
    vector = np.zeros(1000, dtype="<u4")
    add_masks(vector, plus=KEYS[:2])
    add_masks(vector, minus=KEYS[:1])
    # A uniform 32-bit word is zero with probability 2^-32; here the keys are fixed, so the answer is too.
    assert np.all(vector != 0)


def test_masking_needs_one_block_beside_the_vector() -> None:
    vector = np.zeros(40 * BLOCK_BYTES, dtype="<u2")
    tracemalloc.start()
    add_masks(vector, plus=KEYS, minus=KEYS)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2 * BLOCK_BYTES
