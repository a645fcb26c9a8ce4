import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from grandrounds.common.crypto.csprng import KEY_BYTES, Stream, derived_key


def _keystream(stream: Stream, size_bytes: int) -> bytes:
    out = bytearray(size_bytes)
    stream.fill(memoryview(out))
    return bytes(out)


def test_the_keystream_is_aes_256_of_the_counters_0_1_2() -> None:
    # McGrew and Viega, The Galois/Counter Mode of Operation, test cases 13 and 14: with a zero key, E(0) is the hash
    # key H, E(1) the tag of the empty message, E(2) the ciphertext of a zero block.
    known = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
    assert _keystream(Stream(bytes(KEY_BYTES)), 48).hex() == known


def test_the_reference_below_is_the_aes_of_nist_sp_800_38a() -> None:
    # NIST SP 800-38A, F.1.5, ECB-AES256.Encrypt, first block.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    assert _aes(key, bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"


def test_a_long_keystream_is_counter_mode_of_nist_sp_800_38a() -> None:
    key = bytes(range(KEY_BYTES))
    blocks = 3 * (1 << 16) // 16 + 5
    counters = b"".join(i.to_bytes(16, "big") for i in range(blocks))
    assert _keystream(Stream(key), 16 * blocks) == _aes(key, counters)


def test_a_keystream_read_in_pieces_is_the_same_keystream() -> None:
    key = bytes(range(KEY_BYTES))
    stream = Stream(key)
    pieces = b"".join(_keystream(stream, size) for size in (1, 15, 16, 17, 100_000, 8, 3))
    assert pieces == _keystream(Stream(key), len(pieces))


def test_words_are_the_little_endian_keystream() -> None:
    key = bytes(range(KEY_BYTES))
    words = Stream(key).words(1000)
    assert words.astype("<u8").tobytes() == _keystream(Stream(key), 8000)
    assert Stream(key).words(0).shape == (0,)


def test_two_fresh_streams_share_nothing_whatever_was_seeded() -> None:
    runs = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        runs.append(Stream.fresh().words(4096))
    assert not np.intersect1d(runs[0], runs[1]).size  # by chance with probability below 1e-12


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(bytes(16))


def _aes(key: bytes, blocks: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)  # noqa: S305


@pytest.mark.parametrize("purpose", [b"", b"words\n", bytes(100)])
def test_a_derived_key_is_hkdf_expand_s(purpose: bytes) -> None:
    key = bytes(range(32))
    assert derived_key(key, purpose) == HKDFExpand(algorithm=SHA256(), length=32, info=purpose).derive(key)
