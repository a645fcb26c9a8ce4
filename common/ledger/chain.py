"""A ledger: what was released and who signed it, as a chain of entries that only grows; a study's, if no other's."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from pydantic import Field, ValidationError

from ..crypto.identity import Hex32, Identity, Signature, canonical_json, sha256, verify_signature
from ..errors import EnvelopeError, LedgerError
from ..schema import Section

LEDGER_LABEL = b"grandrounds/ledger/v1\n"
EMPTY_LEDGER_HEAD = "00" * 32
MAX_ENTRY_BYTES = 1 << 26
# An entry's line begins with its author and ends with its signature and type, whatever lies between.
_BEGINNING = re.compile(rb'\{"author":"([0-9a-f]{64})","body":\{')
_END = re.compile(rb'"sequence":(\d{1,13}),("signature":"([0-9a-f]{128})",)"type":"[a-z-]{1,40}"\}\Z')
_LONGEST_END = 300
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_WHY: Final = "the claim is computed from the ledger, and a missing or changed entry could hide a release"
_FIX: Final = "compare the ledger with another site's; keep both, and tell every site"
MAX_DEPTH = 12  # of objects and lists in each other; a manifest's have 7


class UnknownFormError(LedgerError):
    """An entry, signed as it stands, that this program does not write; another version may have."""

    @classmethod
    def of(cls, what: str) -> Self:
        """Of a ledger in which ``what`` was found."""
        return cls(what, why=_WHY, fix=_FIX)


class EntryType(StrEnum):
    """What an entry records."""

    STUDY = "study"
    COUNTERSIGNATURE = "countersignature"
    ATTEMPT_BEGUN = "attempt-begun"
    ATTEMPT_ENDED = "attempt-ended"
    ROUND_CLOSED = "round-closed"
    STUDY_CLOSED = "study-closed"
    CLOSING_SIGNATURE = "closing-signature"


@dataclass(frozen=True, kw_only=True)
class Book:
    """What kind of ledger it is: the ``label`` under which its entries are signed, and the types that they have."""

    label: bytes
    types: type[StrEnum]


STUDY_BOOK: Final = Book(label=LEDGER_LABEL, types=EntryType)


class _Fields(Section):
    """An entry as a line of JSON."""

    author: Hex32
    body: dict[str, Any]
    previous: Hex32
    sequence: int = Field(ge=0, le=2**40)
    signature: Signature
    type: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry: ``line`` is it in RFC 8785 JSON, signed by the server key ``author``; ``hash`` is what the next names.

    The signature is over all fields but itself, ``previous`` among them. Whether ``author`` is the study's server is
    for whoever replays the ledger to decide (``common/ledger/replay.py``).
    """

    type: StrEnum
    body: dict[str, Any]
    author: str
    sequence: int
    previous: str
    line: bytes
    hash: str

    @classmethod
    def parse(cls, line: bytes, book: Book = STUDY_BOOK) -> Self:
        """Read a line. Raises LedgerError unless it is an entry in its one encoding, signed by whom it names."""
        if len(line) > MAX_ENTRY_BYTES:
            raise broken("an entry is too long")
        _check_before_parsing(line, book.label)
        try:
            fields = _Fields.model_validate_json(line)
            type_ = book.types(fields.type)
            canonical = canonical_json(fields.model_dump())
        except (ValidationError, ValueError, RecursionError) as error:
            raise UnknownFormError.of("an entry is not what this version writes") from error
        if canonical != line:  # so that what was taken for author and signature is that
            raise broken(f"entry {fields.sequence} is not in canonical form")
        return cls(
            type=type_,
            body=fields.body,
            author=fields.author,
            sequence=fields.sequence,
            previous=fields.previous,
            line=line,
            hash=sha256(book.label + line),
        )

    @classmethod
    def seal(
        cls,
        identity: Identity,
        *,
        entry_type: StrEnum,
        body: dict[str, Any],
        sequence: int,
        previous: str,
        book: Book = STUDY_BOOK,
    ) -> Self:
        """The entry at ``sequence``, signed."""
        fields = {
            "author": identity.public_key,
            "body": body,
            "previous": previous,
            "sequence": sequence,
            "type": entry_type.value,
        }
        signature = identity.sign(book.label, canonical_json(fields)).hex()
        return cls.parse(canonical_json({**fields, "signature": signature}), book)


def author_of(line: bytes) -> str | None:
    """Who signed a line, by what it says itself; None where it is no entry's."""
    beginning = _BEGINNING.match(line)
    return None if beginning is None else beginning[1].decode()


def _check_before_parsing(line: bytes, label: bytes) -> None:
    """Raises LedgerError unless a line is signed by whom it names, and of few levels.

    JSON takes fifty times its size in memory, and whoever has no key could have it taken of anybody who reads a ledger.
    """
    beginning, end = _BEGINNING.match(line), _END.search(line, max(len(line) - _LONGEST_END, 0))
    if beginning is None or end is None:
        raise broken("an entry is not what this version writes")
    try:
        signed = line[: end.start(2)] + line[end.end(2) :]
        verify_signature(beginning[1].decode(), bytes.fromhex(end[3].decode()), label, signed)
    except EnvelopeError as error:
        raise broken(f"the signature of entry {end[1].decode()} does not verify") from error
    depth = deepest = 0
    for bracket in _STRING.sub(b"", line).translate(None, _NO_BRACKET):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise broken(f"entry {end[1].decode()} has {deepest} levels, and an honest one at most {MAX_DEPTH}")


@dataclass
class Ledger:
    """A chain from its first entry on."""

    _entries: list[Entry] = field(default_factory=list)
    book: Book = STUDY_BOOK

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def head(self) -> str:
        """The last entry's hash, which stands for the whole chain; 32 zero bytes where it is empty."""
        return self._entries[-1].hash if self._entries else EMPTY_LEDGER_HEAD

    @property
    def last(self) -> Entry | None:
        """The last entry."""
        return self._entries[-1] if self._entries else None

    def head_at(self, length: int) -> str | None:
        """The head when the ledger had ``length`` entries; None if it never had so many."""
        if length == 0:
            return EMPTY_LEDGER_HEAD
        return self._entries[length - 1].hash if 0 < length <= len(self) else None

    def lines(self, start: int = 0) -> list[bytes]:
        """The entries from ``start`` on, as they are stored and sent."""
        return [entry.line for entry in self._entries[start:]]

    def continuation(self, lines: Sequence[bytes]) -> list[Entry]:
        """The entries among ``lines`` that this ledger lacks; those that it has may stand before them.

        Raises LedgerError where they are another history than this one's, or leave a gap after it.
        """
        new: list[Entry] = []
        head, length = self.head, len(self)
        for line in lines:
            entry = Entry.parse(line, self.book)
            if entry.sequence < len(self):
                if self._entries[entry.sequence].line != line:
                    raise broken(f"entry {entry.sequence} was another before: this is a different history")
                continue
            if entry.sequence != length:
                raise broken(f"entry {entry.sequence} stands where entry {length} should")
            if entry.previous != head:
                raise broken(f"entry {entry.sequence} does not continue what is before it: this is another history")
            new.append(entry)
            head, length = entry.hash, length + 1
        return new

    def add(self, entries: Sequence[Entry]) -> None:
        """Take what ``continuation`` returned."""
        self._entries += entries


def broken(what: str, *, fix: str = _FIX) -> LedgerError:
    """A ledger that is not whole, or does not bear out what is claimed from it."""
    return LedgerError(what, why=_WHY, fix=fix)
