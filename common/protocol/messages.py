"""What is said in one attempt: a model per message, and how a message becomes one envelope.

The order is Begin → Advert → Adverts → Shares → Ciphertexts → MaskedInput → Survivors → Consistency → Consistencies →
Unmask: the server's five messages and the sites' five answers. ``Refusal`` is a site's other answer, before its charge.
Before the first attempt, ``Invitation`` asks for each site's ``Agreed``; after the last, ``Close`` brings each site the
end of the ledger, which it signs with ``Closed``.
"""

import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import ClassVar, Self

from pydantic import Field, ValidationError

from ..crypto.identity import Hex32, Name, Signature, canonical_json, sha256
from ..errors import EnvelopeError
from ..schema import Section
from ..system.content import Content, Joined, cut
from .envelope import Envelope

SERVER = "server"
# Where the bytes of an envelope lie in what carries them (the record and its field in a Flower message).
RECORD = "grandrounds"
FIELD = "envelope"
BEGIN_LABEL = b"grandrounds/begin/v1\n"
MAX_PARTS = 1 << 20


class Message(Section):
    """The body of one message. Unknown fields are refused, and so is a payload where none is due."""

    exchange: ClassVar[str]
    has_payload: ClassVar[bool] = False

    @classmethod
    def of(cls, envelope: Envelope) -> Self:
        """The body of ``envelope`` as this message; raises EnvelopeError if it is another or malformed."""
        if envelope.exchange != cls.exchange:
            raise _unexpected(f"{envelope.exchange!r} where {cls.exchange!r} was due")
        if envelope.payload and not cls.has_payload:
            raise _unexpected(f"{cls.exchange!r} with a payload")
        try:
            return cls.model_validate_json(canonical_json(envelope.body))
        except ValidationError as error:
            raise _unexpected(f"{cls.exchange!r} with a body of the wrong form") from error


class Begin(Message):
    """The server opens an attempt. Payload, packed: what the site lacks of the adapter; then of the ledger's entries.

    Of the adapter it is packed: adapter and optimiser before the last round, and that round's sum (``study/step``).

    The ledger ends with the entry that records this attempt: its length and head include it.
    """

    exchange = "begin"
    has_payload = True
    round: int = Field(ge=1, le=2**31)
    invited: tuple[Name, ...]
    adapter_sha256: Hex32
    ledger_length: int = Field(ge=0, le=2**40)
    ledger_head: Hex32


class Advert(Message):
    """A site's keys for one attempt, and the end of the chain that its noise hangs on; it travels on to every peer."""

    exchange = "advert"
    channel_key: Hex32
    mask_key: Hex32
    seed_commitment: Hex32
    noise_end: Hex32
    begin_hash: Hex32
    charge_counter: int = Field(ge=0, le=2**31)


class Adverts(Message):
    """The server relays the adverts of U1. Payload: their envelopes, packed, in roster order."""

    exchange = "adverts"
    has_payload = True


class Shares(Message):
    """A site's shares for its peers. Payload: ciphertexts, packed, in roster order of U1 without the sender."""

    exchange = "shares"
    has_payload = True


class Ciphertexts(Message):
    """The server relays what the peers in U2 sent to one site. Payload: packed, in roster order of U2 without it."""

    exchange = "ciphertexts"
    has_payload = True
    u2: tuple[Name, ...]


class MaskedInput(Message):
    """A site's masked update. Payload: little-endian unsigned integers of the modulus [d]."""

    exchange = "masked-input"
    has_payload = True
    charge_counter: int = Field(ge=1, le=2**31)


class Survivors(Message):
    """The server says whose masked inputs it has: U3."""

    exchange = "survivors"
    u3: tuple[Name, ...]


class Consistency(Message):
    """A site signs the one view of the attempt that it will answer for."""

    exchange = "consistency"
    transcript: Hex32
    u2: tuple[Name, ...]
    u3: tuple[Name, ...]


class Consistencies(Message):
    """The server relays consistency signatures. Payload: their envelopes, packed."""

    exchange = "consistencies"
    has_payload = True


class Unmask(Message):
    """For each member of U2 one share; and a link, by which the layers of this site's noise are found that may go.

    Payload: packed in roster order; of the seed (in U3) or of the mask key.
    """

    exchange = "unmask"
    has_payload = True
    noise_link: Hex32


class RefusalCode(StrEnum):
    """Why a site does not take part: a closed list, none of it about records."""

    MANIFEST = "manifest"
    BEGIN = "begin"
    SERIAL = "serial"
    ADAPTER = "adapter"
    SCHEDULE = "schedule"
    LEDGER = "ledger"
    SET_BACK = "set-back"
    BUDGET = "budget"
    STORAGE = "storage"
    PROTOCOL = "protocol"
    PAUSED = "paused"


class Refusal(Message):
    """A site's answer instead of an advert or shares: only before its charge, when nothing was computed from data."""

    exchange = "refusal"
    code: RefusalCode


class Invitation(Message):
    """The server asks for a site's signature on the manifest that this envelope names, after the ledger named here.

    Payload, packed: that ledger's entries, none of them before a study's first manifest.
    """

    exchange = "invitation"
    has_payload = True
    ledger_length: int = Field(ge=0, le=2**40)
    ledger_head: Hex32


class Agreed(Message):
    """A site agrees to the manifest in that place: its countersignature, and the reservation that it states there."""

    exchange = "agreed"
    reservation: int = Field(ge=0, le=2**40)
    signature: Signature


class Close(Message):
    """The server closes the study. Payload, packed: what the site lacks of ledger and adapter, packed; then files.

    They are what the study leaves, all of it, in the order of the names under which its closing entry has their hashes;
    none to a site that has signed, which gets the signatures of the others.
    """

    exchange = "close"
    has_payload = True
    ledger_length: int = Field(ge=1, le=2**40)
    ledger_head: Hex32


class Closed(Message):
    """A site signs the ledger up to the entry that closed the study."""

    exchange = "closed"
    ledger_length: int = Field(ge=1, le=2**40)
    ledger_head: Hex32


def begin_hash(begin: Begin, *, manifest: str, attempt: int) -> str:
    """H(Begin): what every advert repeats, so that sites shown different Begins share no transcript."""
    fields = {"manifest": manifest, "attempt": attempt, "body": begin.model_dump(mode="json")}
    return sha256(BEGIN_LABEL + canonical_json(fields))


def pack(parts: Sequence[Content]) -> bytes:
    """Byte strings as one payload: count (32-bit), lengths (64-bit, little-endian), contents.

    >>> unpack(pack([b"a", b"", b"bc"]))
    [b'a', b'', b'bc']
    """
    return packed(parts)[:]


def packed(parts: Sequence[Content]) -> Joined:
    """What ``pack`` puts together, not put together: parts can be large.

    >>> packed([b"a", packed([b"bc"])])[:] == pack([b"a", pack([b"bc"])])
    True
    """
    return Joined([struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)), *parts])


def unpack(payload: Content) -> list[bytes]:
    """The byte strings of ``pack``; raises EnvelopeError if they do not fill the payload exactly."""
    return [bytes(part[:]) for part in _parts(payload)]


def views(payload: Content) -> list[Content]:
    """As ``unpack``, each where it lies."""
    return list(_parts(payload))


def _parts(payload: Content) -> Iterator[Content]:
    if len(payload) < 4:
        raise _unexpected("a packed payload without a count")
    (count,) = struct.unpack("<I", payload[:4])
    start = 4 + 8 * count
    if count > MAX_PARTS or len(payload) < start:
        raise _unexpected("a packed payload with an impossible count")
    lengths = struct.unpack(f"<{count}Q", payload[4:start])
    if start + sum(lengths) != len(payload):
        raise _unexpected("a packed payload whose lengths do not add up")
    for length in lengths:
        yield cut(payload, start, start + length)
        start += length


def at_least(count: int, payload: Content) -> list[Content]:
    """As ``views``; raises EnvelopeError where there are fewer."""
    parts = views(payload)
    if len(parts) < count:
        raise _unexpected(f"{len(parts)} packed parts where {count} or more were due")
    return parts


def _unexpected(detail: str) -> EnvelopeError:
    return EnvelopeError(
        f"unexpected message: {detail}",
        why="a message out of place could make a site answer twice or for another attempt",
        fix="check that both ends run the version in the manifest",
    )
