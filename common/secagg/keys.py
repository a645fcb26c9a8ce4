"""The secrets of one attempt and every key that is derived from them.

X25519 (RFC 7748) for agreement, HKDF-SHA256 (RFC 5869) for derivation, ChaCha20-Poly1305 (RFC 8439) for what passes
through the server. Every derivation names its purpose, the transcript and both ends, so that a copied key, a reflected
or a replayed ciphertext yields another key and opens nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..crypto.csprng import fresh_key
from ..errors import ProtocolError

SEED_COMMITMENT_LABEL = b"grandrounds/secagg/v1/seed-commitment\n"
CHANNEL_LABEL = b"grandrounds/secagg/v1/channel\n"
PAIR_MASK_LABEL = b"grandrounds/secagg/v1/pair-mask\n"
SELF_MASK_LABEL = b"grandrounds/secagg/v1/self-mask\n"
TAG_BYTES = 16
_FIELD = 2**255 - 19
# The points of order 1, 2, 4 and 8 of the curve and its twist: with any of them the shared secret is zero.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD - 1,
    }
)


@dataclass(frozen=True, kw_only=True)
class AttemptSecrets:
    """What a site draws for one attempt and keeps in memory only: two X25519 keys, and seeds of mask and noise."""

    channel: bytes = field(repr=False)
    mask: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    noise: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> "AttemptSecrets":
        """New secrets, 32 bytes each, from the operating system."""
        return cls(**{secret.name: fresh_key() for secret in fields(cls)})

    @cached_property
    def channel_key(self) -> X25519PrivateKey:
        """``channel``, ready to agree with many peers."""
        return load(self.channel)

    @cached_property
    def mask_key(self) -> X25519PrivateKey:
        """``mask``, ready to agree with many peers."""
        return load(self.mask)


def load(private_key: bytes) -> X25519PrivateKey:
    """32 private bytes as a key. Loading costs as much as agreeing, so what agrees with many is loaded once."""
    return X25519PrivateKey.from_private_bytes(private_key)


def public_key(private_key: bytes | X25519PrivateKey) -> str:
    """The X25519 public key in hex."""
    return _loaded(private_key).public_key().public_bytes_raw().hex()


def check_public_keys(public_keys: Sequence[str]) -> None:
    """Raises ProtocolError unless each is the one encoding of a point that agrees on a secret, and new."""
    for key in public_keys:
        point = int.from_bytes(bytes.fromhex(key), "little")
        if point >= _FIELD:
            raise _bad_key(f"key {key[:16]}… is not canonical", why="one key in two encodings would pass for two")
        if point in _LOW_ORDER:
            raise _bad_key(f"key {key[:16]}… has low order", why="everyone knows the secrets that it agrees on")
    if len(set(public_keys)) < len(public_keys):
        raise _bad_key("one key occurs twice", why="a copied key could stand for its owner's")


def seed_commitment(seed: bytes, *, manifest: str, attempt: int, sender: str) -> str:
    """What a site says of its seed beforehand, in hex: hiding, as the seed has 256 bits, and bound to its context."""
    return hashlib.sha256(SEED_COMMITMENT_LABEL + context(manifest, attempt, sender) + seed).hexdigest()


def self_mask_key(seed: bytes, *, transcript: bytes, name: str) -> bytes:
    """The key of a site's own mask."""
    return derive(seed, SELF_MASK_LABEL + transcript + named(name))


def pair_mask_key(
    private_key: bytes | X25519PrivateKey, peer_key: str, *, transcript: bytes, first: str, second: str
) -> bytes:
    """The key of the mask that ``first`` adds and ``second`` subtracts (roster order); both derive the same."""
    return derive(_agree(private_key, peer_key), PAIR_MASK_LABEL + transcript + named(first) + named(second))


def channel_key(
    private_key: bytes | X25519PrivateKey, peer_key: str, *, transcript: bytes, sender: str, recipient: str
) -> bytes:
    """The key of the one message that ``sender`` encrypts for ``recipient``; both derive the same."""
    return derive(_agree(private_key, peer_key), CHANNEL_LABEL + transcript + named(sender) + named(recipient))


def encrypt(channel: bytes, plaintext: bytes, *, transcript: bytes, sender: str, recipient: str) -> bytes:
    """Seal the one message of a channel key. The nonce is zero because there is no second."""
    return ChaCha20Poly1305(channel).encrypt(bytes(12), plaintext, transcript + named(sender) + named(recipient))


def decrypt(channel: bytes, ciphertext: bytes, *, transcript: bytes, sender: str, recipient: str) -> bytes:
    """Open it. Raises ProtocolError unless ``sender`` sealed it for ``recipient`` in this transcript."""
    try:
        return ChaCha20Poly1305(channel).decrypt(bytes(12), ciphertext, transcript + named(sender) + named(recipient))
    except InvalidTag as error:
        raise ProtocolError(
            f"a ciphertext from {sender} does not open",
            why="someone between the sites altered, swapped or replayed it",
            fix="check the server; if it is sound, the sending site",
        ) from error


def context(manifest: str, attempt: int, sender: str) -> bytes:
    """What a secret of one site is for: this study, this attempt, this site."""
    return bytes.fromhex(manifest) + attempt.to_bytes(8, "little") + named(sender)


def named(name: str) -> bytes:
    """A name with its length in front, so that no two sequences of names run into the same bytes."""
    return bytes([len(name)]) + name.encode("ascii")


def _loaded(private_key: bytes | X25519PrivateKey) -> X25519PrivateKey:
    return load(private_key) if isinstance(private_key, bytes) else private_key


def _agree(private_key: bytes | X25519PrivateKey, peer_key: str) -> bytes:
    return _loaded(private_key).exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer_key)))


def derive(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt, 32 bytes."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _bad_key(what: str, *, why: str) -> ProtocolError:
    return ProtocolError(what, why=why, fix="find the site that sent it: it does not run the code in the manifest")
