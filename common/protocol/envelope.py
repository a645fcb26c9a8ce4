"""The signed envelope that every message travels in."""

import struct
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from ..crypto.identity import WHY_SIGNED, Hex32, Identity, Name, canonical_json, sha256, verify_signature
from ..errors import EnvelopeError
from ..schema import Section
from ..system.content import BLOCK_BYTES, Content, Joined, cut

# Domain separation: a signature under one label means nothing under another.
ENVELOPE_LABEL = b"grandrounds/envelope/v1\n"

MAX_HEADER_BYTES = 1 << 20

_SIGNATURE_BYTES = 64


class _Header(Section):
    """The signed part of an envelope; the payload is covered by its hash."""

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
    payload is a part of what is on the wire, where that lies: updates are too large to copy.
    """

    manifest: str
    attempt: int
    exchange: str
    sender: str
    body: dict[str, Any]
    payload: Content
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
        payload: Content = b"",
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
        return cls(**fields, payload=payload, header=header, signature=identity.sign(ENVELOPE_LABEL, header))

    @classmethod
    def parse(cls, wire: Content) -> "Envelope":
        """Read an envelope; the signature is not yet checked. Raises EnvelopeError, and StorageError for a file's."""
        if not wire:
            raise EnvelopeError(
                "its worker did not answer",
                why="it is not up, was too slow, or stays silent where nothing may be said",
                fix="`grandrounds client health` there says how it is, and its store/worker.log what it met",
            )
        if len(wire) < 4 + _SIGNATURE_BYTES:
            raise _malformed("it is too short")
        (size,) = struct.unpack("<I", wire[:4])
        if size > MAX_HEADER_BYTES or len(wire) < 4 + size + _SIGNATURE_BYTES:
            raise _malformed("its header has an impossible length")
        header = bytes(wire[4 : 4 + size])
        payload = cut(wire, 4 + size + _SIGNATURE_BYTES, len(wire))
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
            payload=b"",
            header=statement.header,
            signature=statement.signature,
        )

    @property
    def statement(self) -> "Statement":
        """Header and signature: proof of what its sender said, without the payload."""
        return Statement(header=self.header, signature=self.signature)

    def verify(self, public_key: str) -> None:
        """Raises EnvelopeError unless the owner of ``public_key`` signed exactly this."""
        verify_signature(public_key, self.signature, ENVELOPE_LABEL, self.header)

    @property
    def wire(self) -> Content:
        """The envelope as it travels: where it is large, with its payload where that lies."""
        return self.to_bytes() if len(self.payload) <= BLOCK_BYTES else self._joined

    def to_bytes(self) -> bytes:
        """The envelope as it travels, in memory."""
        return self._joined[:]

    @property
    def _joined(self) -> Joined:
        return Joined([struct.pack("<I", len(self.header)), self.header, self.signature, self.payload])


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
        why=WHY_SIGNED,
        fix="check that both ends run the version in the manifest",
    )
