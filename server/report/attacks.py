"""What a report says of attacks on its adapter: of a simulation whose patients are nobody's, and of no other study."""

from pathlib import Path
from typing import Final, Self

from ...common.audit.attack_scores import AttackEvidence
from ...common.crypto.identity import Hex32, sha256
from ...common.errors import StudyError
from ...common.schema import Section
from ...common.study.artefacts import ATTACKS
from ...common.study.manifest import Manifest
from .findings import Curve, Findings, promise

NONE: Final = (
    "No attack on the adapter is part of this report. What one finds of real patients stays at their site, where "
    "`grandrounds client fetch DIR --attack` makes it; of a simulation of synthetic or public ones, `grandrounds "
    "simulate --attack` puts it here, and `grandrounds adapter attack DIR --attach` beside the report, where "
    "`grandrounds verify` checks it too."
)


class Attacked(Section):
    """What attacks found, and the hash of the file whose scores bear it out."""

    sha256: Hex32
    findings: Findings

    @classmethod
    def of(cls, data: bytes, manifest: Manifest, *, adapter_sha256: str) -> Self:
        """Of the bytes of attacks.json; raises StudyError where they are none, or of another adapter than this."""
        evidence = AttackEvidence.parse(data)
        evidence.require_study(manifest, adapter_sha256)
        return cls(sha256=sha256(data), findings=findings_of(evidence, manifest))

    def under(self, curve: Curve) -> Self:
        """The same, beside what this ``curve`` allows."""
        return self.model_copy(update={"findings": self.findings.model_copy(update={"curve": curve})})

    @property
    def in_words(self) -> str:
        """By whose word it is, and the verdict."""
        found = self.findings
        verdict = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in found.verdict())
        return (
            f"By the word of whoever ran them, {len(found.attacks)} attacks on {found.members} patients who were "
            f"trained on and {found.others} who were not. {verdict}"
        )


def findings_of(evidence: AttackEvidence, manifest: Manifest) -> Findings:
    """All figures, which follow from the scores and from what the study's ε allows."""
    return Findings.of(evidence.members.seen, evidence.others.seen, curve=promise(manifest))


def attached(folder: Path, manifest: Manifest, *, adapter_sha256: str) -> Attacked | None:
    """The attacks that lie in a study's folder; None without any, or where they are unfit: `verify` says why."""
    try:
        return Attacked.of((folder / ATTACKS).read_bytes(), manifest, adapter_sha256=adapter_sha256)
    except (OSError, StudyError):
        return None
