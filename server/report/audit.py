"""What a report says of an audit: of a twin of the study, by the bounds on ε that its canaries show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from ...common.audit.bounds import Kind
from ...common.audit.evidence import CLAIMED, AuditEvidence, Bound, Protection
from ...common.audit.named import name_of
from ...common.audit.roc import Estimate
from ...common.crypto.identity import Hex32, sha256
from ...common.errors import StudyError
from ...common.schema import Section
from ...common.study.artefacts import AUDIT
from ...common.study.manifest import Manifest
from .rounding import area, down

NONE: Final = (
    "No audit is part of this report. `grandrounds audit DIR --attach DIR` makes one, by a twin of the study with "
    "planted records: before the study ends it becomes part of the report, afterwards it stands beside it, where "
    "`grandrounds verify` checks it too."
)

# What a bound by synthetic notes says, and what it does not.
OF_NOTES: Final = (
    "One attack was tried on synthetic notes, and on so many of them: a bound of 0 says that it found nothing, not "
    "that nothing is in them. What they tell follows from the adapter, and is within its ε."
)

# Of what each kind of canary is scored by, in words: fixed in the program, before any run.
_SCORES: Final[Mapping[Kind, str]] = {
    "gradient": "the likelihood ratio of a canary's inner products with all sums, that it was in to that it was not",
    "text": "by how much the finished adapter lowers a text's loss",
    "synthetic notes": "by how much an adapter that was trained on the notes alone lowers a text's loss",
}
# What is planted into a twin, in words.
_FAULTS: Final[Mapping[Protection, str]] = {
    "noise off": "no site adds any noise",
    "noise forgotten at one site": "one site adds none, all others theirs",
    "half the noise": "each site adds half of its noise",
    "a mask left in": "one site’s mask is not taken off: the sum says nothing of anybody, and is worthless",
    "a draw reused": "the noise of the first step is used in the second once more",
}


class Audited(Section):
    """An audit's bounds by the methods that were chosen beforehand, and the hash of the file that bears them out.

    ``canaries`` says how many there were of each kind, ``areas`` the area under the ROC curve of those that were in the
    claimed twin and those that were not, ``claimed`` which ε was put to the test, ``seed`` what coins and canaries
    follow from. ``synthetic_notes`` says how many each twin's adapter wrote, where they were audited; else a report has
    no word of them.
    """

    sha256: Hex32
    claimed: float = Field(gt=0, le=1e12)
    confidence: float
    canaries: dict[Kind, int]
    areas: dict[Kind, Estimate]
    bounds: Annotated[tuple[Bound, ...], Field(strict=False)]
    seed: Hex32
    synthetic_notes: int | None = None

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Of the bytes of audit.json; raises StudyError where they are none."""
        evidence = AuditEvidence.parse(data)
        runs = [run for run in evidence.canaries if run.protection == CLAIMED]
        areas = {run.kind: run.area(confidence=evidence.confidence) for run in runs}
        return cls(
            sha256=sha256(data),
            claimed=evidence.claimed,
            confidence=evidence.confidence,
            canaries={run.kind: len(run.scores) for run in runs},
            areas={kind: found for kind, found in areas.items() if found is not None},
            bounds=tuple(bound for bound in evidence.bounds if bound.is_chosen),
            seed=evidence.seed,
            synthetic_notes=evidence.synthetic_notes,
        )

    @property
    def stated(self) -> dict[str, Any]:
        """All of it as report.json has it."""
        return self.model_dump(mode="json", exclude_none=True)

    def _planted(self, kind: Kind) -> str:
        return planted(kind, self.canaries.get(kind, 0), self.synthetic_notes)

    @property
    def in_brief(self) -> str:
        """What was found, in a line."""
        found = [bound for bound in self.bounds if bound.protection == CLAIMED]
        most = max(found, key=lambda bound: bound.epsilon)
        off = [bound.epsilon for bound in self.bounds if (bound.kind, bound.protection) == (most.kind, "noise off")]
        return f"ε is at least {down(most.epsilon)} by {self._planted(most.kind)}, and {self.claimed:g} is claimed" + (
            f"; without noise at least {down(off[0])} would be seen" if off else ""
        )

    @property
    def beforehand(self) -> list[str]:
        """What was chosen before the run, in sentences: scores, methods, the seed."""
        found = [bound for bound in self.bounds if bound.protection == CLAIMED]
        return [
            *(f"{bound.kind} canaries: {_SCORES[bound.kind]}; bounded by the method {bound.method}" for bound in found),
            f"seed of coins and canaries: `{self.seed}`",
        ]

    @property
    def power(self) -> list[dict[str, Any]]:
        """What the same audit finds of twins with a fault: of each what it is, and whether it shows."""
        return [
            {
                "kind": bound.kind,
                "fault": bound.protection,
                "means": _FAULTS[bound.protection],
                "epsilon": bound.epsilon,
                "is_seen": bound.epsilon > self.claimed,
            }
            for bound in self.bounds
            if bound.protection != CLAIMED
        ]

    @property
    def in_words(self) -> str:
        """What was found, and what that says."""
        found = [bound for bound in self.bounds if bound.protection == CLAIMED]
        shown = " and ".join(
            f"{self._planted(each.kind)} show that ε is at least {down(each.epsilon)}" for each in found
        )
        refuted = any(bound.epsilon > self.claimed for bound in found)
        verdict = "This refutes the claim." if refuted else f"That is within the claim{self._blindness}."
        return (
            f"In a twin of this study, by the word of whoever audited it, {shown}, with a confidence of "
            f"{100 * self.confidence:g} %; {self.claimed:g} is claimed. {verdict}{self._areas}"
            + ("" if self.synthetic_notes is None else f" {OF_NOTES}")
        )

    @property
    def _areas(self) -> str:
        shown = [f"{area(found.model_dump())} by {self._planted(kind)}" for kind, found in self.areas.items()]
        return f" Area under the ROC curve, 0.5 for guessing: {', '.join(shown)}." if shown else ""

    @property
    def _blindness(self) -> str:
        """By which kinds of canaries noise that is off would pass as well, or may: nothing where they all see it."""
        kinds = {bound.kind for bound in self.bounds}
        off = {bound.kind: bound.epsilon for bound in self.bounds if bound.protection == "noise off"}
        unseen = [self._planted(kind) for kind in sorted(kinds & off.keys()) if off[kind] <= self.claimed]
        untried = [self._planted(kind) for kind in sorted(kinds - off.keys())]
        return "".join(
            f"; {' and '.join(by)} say little of it: noise that is off {why}"
            for by, why in ((unseen, "is not seen either"), (untried, "was not tried"))
            if by
        )


def planted(kind: Kind, canaries: int, synthetic_notes: int | None) -> str:
    """How many canaries there were of a kind, and by what they were looked for.

    >>> planted("gradient", 1000, None)
    '1,000 planted gradient canaries'
    >>> planted("synthetic notes", 200, 500)
    '200 planted text canaries (by 500 synthetic notes alone)'
    """
    if kind != "synthetic notes":
        return f"{canaries:,} planted {kind} canaries"
    return f"{canaries:,} planted text canaries (by {synthetic_notes or 0:,} synthetic notes alone)"


def attached(folder: Path, manifest: Manifest) -> Audited | None:
    """The audit that lies in a study's folder; None without one, or where it is unfit, of which `verify` says why.

    Bounds are not computed again: that is for whoever verifies.
    """
    try:
        data = (folder / AUDIT).read_bytes()
        AuditEvidence.parse(data).require_of(manifest)
        if manifest.study.about.audit not in (None, name_of(data)):
            return None
    except (OSError, StudyError):
        return None
    return Audited.of(data)
