"""Ed25519 identities, what they sign, and the files that their keys are in."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from ..errors import EnvelopeError, StorageError
from ..schema import Spelt
from ..system.content import Content, blocks
from ..system.files import write_missing

if TYPE_CHECKING:  # a machine that computes gradients and signs nothing needs hashes alone
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
# The y of every point of order 1, 2, 4 or 8 on the curve of Ed25519, also as y + p; the library does not refuse them.
_P = 2**255 - 19
_COORDINATE = 2**255 - 1
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _ORDER_8, _P - _ORDER_8, _P - 1, _P, _P + 1})
WHY_SIGNED = "only intact messages of known senders may act on a study"

Hex32 = Annotated[str, Spelt(r"^[0-9a-f]{64}$", "needs 64 digits of 0-9 and a-f")]
Signature = Annotated[str, Spelt(r"^[0-9a-f]{128}$", "needs 128 digits of 0-9 and a-f")]
Name = Annotated[
    str, Spelt(r"^[a-z0-9][a-z0-9-]{0,62}$", "needs a name of at most 63 characters: a-z, 0-9 and, inside, -")
]


def shown_key(key: str) -> str:
    """A public key as it is printed everywhere: in groups of four, to be read aloud.

    >>> shown_key("0123456789ab")
    '0123 4567 89ab'
    """
    return " ".join(key[start : start + 4] for start in range(0, len(key), 4))


def written_out(given: str) -> str:
    """A hash or a key as it is compared, of one as people copy it: in groups, or in capitals.

    >>> written_out("0123 45AB")
    '012345ab'
    """
    return "".join(given.split()).lower()


def _written_out(given: Any) -> Any:
    return written_out(given) if isinstance(given, str) else given


# A public key as people hand it on: as it is printed, or without the spaces.
GivenKey = Annotated[Hex32, BeforeValidator(_written_out)]


def canonical_json(value: Any) -> bytes:
    """The one encoding of a JSON value that is hashed and signed (RFC 8785).

    >>> canonical_json({"b": 1, "a": "x"})
    b'{"a":"x","b":1}'
    """
    if _is_plain(value):  # then both write the same, and this one in a third of the time
        return _ENCODER.encode(value).encode()
    import rfc8785

    return rfc8785.dumps(value)


def _is_plain(value: object) -> bool:
    """Whether there are only printable ASCII strings and integers that a double holds, which have one form in JSON."""
    # Exact types: a float, a boolean or a subclass is left to the library.
    if type(value) is str:
        return value.isascii() and value.isprintable()
    if type(value) is dict:
        return all(type(key) is str and _is_plain(key) for key in value) and all(map(_is_plain, value.values()))
    if type(value) is list or type(value) is tuple:
        return all(map(_is_plain, value))
    return type(value) is int and -(2**53) < value < 2**53


def sha256(data: Content) -> str:
    """SHA-256 in lower-case hex."""
    digest = hashlib.sha256()
    for block in blocks(data):
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Identity:
    """A signing key: a site's or the server's (Ed25519, RFC 8032)."""

    _key: "Ed25519PrivateKey"

    @classmethod
    def generate(cls) -> "Identity":
        """A new key from the operating system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "Identity":
        """The key of 32 secret bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for whoever keeps the key."""
        return self._key.private_bytes_raw()

    @property
    def public_key(self) -> str:
        """The public key in lower-case hex, 32 bytes."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, label: bytes, data: bytes) -> bytes:
        """Sign ``label ‖ data``; 64 bytes."""
        return self._key.sign(label + data)


def verify_signature(public_key: str, signature: bytes, label: bytes, data: bytes) -> None:
    """Raises EnvelopeError unless ``signature`` is the key's on ``label ‖ data``, and nobody but its owner's."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = bytes.fromhex(public_key)
        if int.from_bytes(key, "little") & _COORDINATE in _SMALL_ORDER:
            raise ValueError("anybody can sign under a key of small order")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, label + data)
    except (InvalidSignature, ValueError) as error:
        raise EnvelopeError(
            f"a signature does not verify under key {public_key[:16]}…",
            why=WHY_SIGNED,
            fix="compare the key's fingerprint with its owner and check what carried the message",
        ) from error


def make_key(path: Path) -> None:
    """Make a key, unless there is one. Raises StorageError."""
    write_missing(path, lambda: Identity.generate().secret.hex().encode(), mode=0o600)


def read_key(path: Path, *, whose: str, instead: str) -> Identity:
    """The key, in ``whose`` name its holder speaks. Raises OSError and ValueError where there is none.

    Raises StorageError if other users may read it; ``instead`` says what replaces one that somebody may have read.
    """
    with path.open(encoding="ascii") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise StorageError(
                f"{path} is open to other users",
                why=f"whoever has the key can speak in {whose} name",
                fix=f"chmod 600 {path}, or make {instead} if somebody may have read it",
            )
        return Identity.from_bytes(bytes.fromhex(file.read(128).strip()))
