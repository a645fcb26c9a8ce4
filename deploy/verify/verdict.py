"""What a verification finds: of each claim a status, of the study an outcome, which is the command's exit code."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Status(StrEnum):
    """What became of a claim."""

    AGREES = "agrees"
    DISAGREES = "does not agree"
    OPEN = "cannot be established"
    NOTHING = "nothing is claimed"
    ABSENT = "there is none"


class Outcome(IntEnum):
    """What became of the study's whole claim; of several, the lowest but ESTABLISHED counts. 2 is a wrong command."""

    ESTABLISHED = 0
    FALSE = 1
    NO_PRIVACY = 3
    UNFINISHED = 4
    UNKNOWN = 5
    UNVOUCHED = 6

    @property
    def said(self) -> str:
        """In words."""
        return _SAID[self]


_SAID: Final = {
    Outcome.ESTABLISHED: "every claim that is required is established",
    Outcome.FALSE: "a claim is false, or the folder cannot be read",
    Outcome.NO_PRIVACY: "the study ran without noise, and no privacy is claimed",
    Outcome.UNFINISHED: "the study is still open, or too few sites have signed it",
    Outcome.UNKNOWN: "a claim can neither be confirmed nor refuted here",
    Outcome.UNVOUCHED: "all else is established, but not whose study it is: give --manifest-hash",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim, by the ``name`` that ``--require`` takes; from what it was recomputed, and what came of it.

    ``outcome`` is what that makes of the whole.
    """

    name: str
    claim: str
    recomputed_from: str
    status: Status
    outcome: Outcome
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of every claim."""

    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing disagrees: no more than that, and true of a study that is open, or that claims nothing."""
        return all(finding.status is not Status.DISAGREES for finding in self.findings)

    @property
    def outcome(self) -> Outcome:
        """What became of the whole claim, of which what a study need not have is no part where there is none."""
        return self.outcome_of({finding.name for finding in self.findings if finding.status is not Status.ABSENT})

    def outcome_of(self, required: Collection[str]) -> Outcome:
        """What became of the claims of these names; one that is false counts whichever it is."""
        outcomes = {
            finding.outcome for finding in self.findings if finding.name in required or finding.outcome is Outcome.FALSE
        }
        return min(outcomes - {Outcome.ESTABLISHED}, default=Outcome.ESTABLISHED)
