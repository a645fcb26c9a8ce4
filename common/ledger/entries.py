"""What stands in the ledger's entries: one model per type of entry."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError

from ..crypto.identity import Hex32, Name, Signature, canonical_json
from ..protocol.envelope import Statement
from ..schema import Section, Spelt
from ..study.manifest import Countersignature as _Countersignature
from ..study.manifest import Manifest
from .chain import Entry, EntryType, UnknownFormError


class SignedStatement(Section):
    """A site's signed header, as JSON text, and the signature in hex."""

    header: str
    signature: Signature

    @classmethod
    def of(cls, statement: Statement) -> Self:
        """A statement as it stands in the ledger."""
        return cls(header=statement.header.decode(), signature=statement.signature.hex())

    @property
    def statement(self) -> Statement:
        """The statement as it was signed."""
        return Statement(header=self.header.encode(), signature=bytes.fromhex(self.signature))


Statements = tuple[SignedStatement, ...]
# A site writes the files under these names, so that none leads out of the study's folder.
_FILE = r"^(study\.json|report\.(json|html)|adapter/[A-Za-z0-9][A-Za-z0-9._-]{0,99})$"
_Path = Annotated[str, Spelt(_FILE, "needs a file that a study leaves")]


class Body(Section):
    """The body of one type of entry. Unknown fields are refused."""

    type: ClassVar[StrEnum]

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """The body of ``entry``; raises UnknownFormError where it has another form."""
        try:
            return cls._read(entry.body)
        except (ValidationError, ValueError, RecursionError) as error:
            what = f"entry {entry.sequence} ({entry.type}) has a body of the wrong form"
            raise UnknownFormError.of(what) from error

    @classmethod
    def _read(cls, body: dict[str, Any]) -> Self:
        return cls.model_validate_json(canonical_json(body))

    @property
    def fields(self) -> dict[str, Any]:
        """The body as JSON values."""
        return self.model_dump(mode="json")


class StudyEntry(Body):
    """A manifest: the study's first, or a successor of the one before.

    ``of`` raises OtherProgramError, too, where another program wrote it in another form.
    """

    type = EntryType.STUDY
    manifest: Manifest

    @classmethod
    def _read(cls, body: dict[str, Any]) -> Self:
        return cls.model_validate({**body, "manifest": Manifest.parse(canonical_json(body.get("manifest")))})


class CountersignatureEntry(Body):
    """A site agreed to the manifest before it."""

    type = EntryType.COUNTERSIGNATURE
    countersignature: _Countersignature


class AttemptBegun(Body):
    """An attempt is about to begin: from here on it counts, whatever becomes of it. All of Begin but its own place."""

    type = EntryType.ATTEMPT_BEGUN
    attempt: int = Field(ge=1, le=2**31)
    round: int = Field(ge=1, le=2**31)
    invited: tuple[Name, ...]
    adapter_sha256: Hex32


class AttemptEnded(Body):
    """What the sites signed in an attempt, and where they were lost.

    Adverts, headers of masked inputs, views, and of the last answers the headers, with the links to removable noise.
    """

    type = EntryType.ATTEMPT_ENDED
    attempt: int = Field(ge=1, le=2**31)
    unmasked: bool
    dropouts: dict[Name, Name]
    adverts: Statements
    masked_inputs: Statements
    consistencies: Statements
    unmasks: Statements


class RoundClosed(Body):
    """The adapter took a step: the hash of the sum that it took, and of adapter and optimiser after it.

    ``average_sha256`` is that of what the study would leave, where this is kept beside the adapter: an average of the
    rounds, or the iterate that disk looks ahead of.
    """

    type = EntryType.ROUND_CLOSED
    attempt: int = Field(ge=1, le=2**31)
    round: int = Field(ge=1, le=2**31)
    sum_sha256: Hex32
    adapter_sha256: Hex32
    optimizer_sha256: Hex32
    average_sha256: Hex32 | None = None


class StudyClosed(Body):
    """The study is over: every site's charge counter, and the SHA-256 of every file that it leaves."""

    type = EntryType.STUDY_CLOSED
    charges: dict[Name, int]
    files: dict[_Path, Hex32]


class ClosingSignature(Body):
    """A site signed the ledger up to ``study-closed``."""

    type = EntryType.CLOSING_SIGNATURE
    closed: SignedStatement
