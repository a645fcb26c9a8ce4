"""Ed25519 identities, and the signed envelope that every message travels in."""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import EnvelopeError

# Domain separation: a signature under one label means nothing under another.
ENVELOPE_LABEL = b"grandrounds/envelope/v1\n"
MAX_HEADER_BYTES = 1 << 20
_SIGNATURE_BYTES = 64
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
# The y of every point of order 1, 2, 4 or 8 on the curve of Ed25519, also as y + p; the library does not refuse them.
_P = 2**255 - 19
_COORDINATE = 2**255 - 1
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _ORDER_8, _P - _ORDER_8, _P - 1, _P, _P + 1})
_WHY_ENVELOPE = "only intact messages of known senders may act on a study"

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


def canonical_json(value: Any) -> bytes:
    """The one encoding of a JSON value that is hashed and signed (RFC 8785).

    >>> canonical_json({"b": 1, "a": "x"})
    b'{"a":"x","b":1}'
    """
    if _is_plain(value):  # then both write the same, and this one in a third of the time
        return _ENCODER.encode(value).encode()
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


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Identity:
    """A signing key: a site's or the server's (Ed25519, RFC 8032)."""

    _key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> "Identity":
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "Identity":
        """The key of 32 secret bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for who keeps the key."""
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
    try:
        key = bytes.fromhex(public_key)
        if int.from_bytes(key, "little") & _COORDINATE in _SMALL_ORDER:
            raise ValueError("anybody can sign under a key of small order")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, label + data)
    except (InvalidSignature, ValueError) as error:
        raise EnvelopeError(
            f"a signature does not verify under key {public_key[:16]}…",
            why=_WHY_ENVELOPE,
            fix="compare the key's fingerprint with its owner and check what carried the message",
        ) from error


class _Header(BaseModel):
    """The signed part of an envelope; the payload is covered by its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    manifest: Hex32
    attempt: int = Field(ge=0, le=2**31)
    exchange: Name
    sender: Name
    body: dict[str, Any]
    payload_bytes: int = Field(ge=0, le=2**40)
    payload_sha256: Hex32


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What somebody signed, without its payload, which the header names by hash."""

    header: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A message with its context and signature: header, signature, raw payload.

    On the wire: header length (4 bytes, little-endian), header (RFC 8785 JSON), signature (64 bytes), payload. The
    payload is a view of the bytes that were parsed or sealed: updates are too large to copy.
    """

    manifest: str
    attempt: int
    exchange: str
    sender: str
    body: dict[str, Any]
    payload: memoryview
    header: bytes
    signature: bytes

    @classmethod
    def seal(
        cls,
        identity: Identity,
        *,
        manifest: str,
        attempt: int,
        exchange: str,
        sender: str,
        body: dict[str, Any],
        payload: bytes | memoryview = b"",
    ) -> "Envelope":
        """Sign a message in its context."""
        fields: dict[str, Any] = {
            "manifest": manifest,
            "attempt": attempt,
            "exchange": exchange,
            "sender": sender,
            "body": body,
        }
        header = canonical_json({**fields, "payload_bytes": len(payload), "payload_sha256": sha256(payload)})
        signature = identity.sign(ENVELOPE_LABEL, header)
        return cls(**fields, payload=memoryview(payload), header=header, signature=signature)

    @classmethod
    def parse(cls, wire: bytes) -> "Envelope":
        """Read an envelope; the signature is not yet checked. Raises EnvelopeError and nothing else."""
        if not wire:
            raise _malformed("it is empty, as where a site stays silent or its worker is away")
        if len(wire) < 4 + _SIGNATURE_BYTES:
            raise _malformed("it is too short")
        (size,) = struct.unpack_from("<I", wire)
        if size > MAX_HEADER_BYTES or len(wire) < 4 + size + _SIGNATURE_BYTES:
            raise _malformed("its header has an impossible length")
        header = bytes(wire[4 : 4 + size])
        payload = memoryview(wire)[4 + size + _SIGNATURE_BYTES :]
        fields = _read_header(header)
        if len(payload) != fields.payload_bytes or sha256(payload) != fields.payload_sha256:
            raise _malformed("its payload is not the one that was signed")
        return cls(
            **fields.model_dump(exclude={"payload_bytes", "payload_sha256"}),
            payload=payload,
            header=header,
            signature=bytes(wire[4 + size : 4 + size + _SIGNATURE_BYTES]),
        )

    @classmethod
    def of_statement(cls, statement: "Statement") -> "Envelope":
        """What was signed, with an empty payload whatever the header says; raises EnvelopeError."""
        fields = _read_header(statement.header)
        return cls(
            **fields.model_dump(exclude={"payload_bytes", "payload_sha256"}),
            payload=memoryview(b""),
            header=statement.header,
            signature=statement.signature,
        )

    @property
    def statement(self) -> "Statement":
        """Header and signature: proof of who said what, without the payload."""
        return Statement(header=self.header, signature=self.signature)

    def verify(self, public_key: str) -> None:
        """Raises EnvelopeError unless the owner of ``public_key`` signed exactly this."""
        verify_signature(public_key, self.signature, ENVELOPE_LABEL, self.header)

    def to_bytes(self) -> bytes:
        """The envelope as it travels."""
        return b"".join((struct.pack("<I", len(self.header)), self.header, self.signature, self.payload))


def _read_header(header: bytes) -> _Header:
    try:
        fields = _Header.model_validate_json(header)
        canonical = canonical_json(fields.model_dump())
    except (ValidationError, ValueError, RecursionError) as error:
        raise _malformed("its header is not what this version writes") from error
    if canonical != header:
        raise _malformed("its header is not canonical JSON")
    return fields


def _malformed(detail: str) -> EnvelopeError:
    return EnvelopeError(
        f"a message is malformed: {detail}",
        why=_WHY_ENVELOPE,
        fix="check that both ends run the version in the manifest",
    )
