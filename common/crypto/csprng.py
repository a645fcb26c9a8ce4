"""Keys from the operating system, and AES-256-CTR streams of them: the only randomness that privacy rests on.

What is secret or random at a server or a site is drawn here and nowhere else (``tests/test_architecture.py``), so that
one place can be judged, and a tape laid beneath it (``tests/support/tape``).
"""

import hmac
import secrets

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
# What one call of the cipher writes: large enough that the call costs nothing, small enough for a second-level cache.
BLOCK_BYTES = 1 << 17
_ZEROS = bytes(BLOCK_BYTES)


def fresh_key() -> bytes:
    """32 bytes from the operating system that nothing else knows; no configuration value ever becomes one."""
    return secrets.token_bytes(KEY_BYTES)


def below(bound: int) -> int:
    """A uniform integer of 0 .. ``bound`` - 1 from the operating system."""
    return secrets.randbelow(bound)


def derived_key(key: bytes, purpose: bytes) -> bytes:
    """A key of its own for each ``purpose``, 32 bytes: one block of HKDF-Expand with SHA-256 (RFC 5869, section 2.3).

    ``key`` is uniform, and serves nothing but derivation.
    """
    return hmac.digest(key, purpose + b"\x01", "sha256")


class Stream:
    """The AES-256-CTR keystream of one key, from counter zero (NIST SP 800-38A, section 6.5).

    A key must serve one purpose only: two streams of one key are the same stream.
    """

    def __init__(self, key: bytes) -> None:
        """Raises ValueError unless the key has 32 bytes."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES-256 key has {KEY_BYTES} bytes, this one has {len(key)}")
        # Here and not above: gradients are computed and measured also where no library of ciphers is.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def fresh(cls) -> "Stream":
        """A stream under a key of its own."""
        return cls(fresh_key())

    def fill(self, out: memoryview) -> None:
        """Write the next ``len(out)`` bytes of the keystream into a writable, contiguous buffer of bytes."""
        if len(out) == BLOCK_BYTES:  # nearly always so for masks, where a slice more is 2 % of the time
            self._encryptor.update_into(_ZEROS, out)
            return
        for start in range(0, len(out), BLOCK_BYTES):
            block = out[start : start + BLOCK_BYTES]
            self._encryptor.update_into(_ZEROS[: len(block)], block)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` independent uniform 64-bit words, little-endian, shape [count]."""
        out = np.empty(count, dtype="<u8")
        self.fill(out.view(np.uint8).data)
        return out
