"""What attacks on an adapter leave of a simulation: each patient's scores, from which all figures follow."""

from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..crypto.identity import Hex32
from ..errors import StudyError
from ..schema import Section, Version
from ..study.manifest import Manifest
from ..study.study import Study
from ..version import __version__
from .evidence_file import EvidenceFile
from .membership import FEWEST, Seen

FORMAT: Final = "grandrounds/attacks/v1"

_WHY: Final = "what attacks found counts for the adapter that they were made on, and follows from each patient's scores"
_DIGITS: Final = 6
_MOST: Final = 1 << 16
# Losses are of a probability, and states move by a length; runs count tokens that are predicted.
_RUNS: Final = ("base_run", "adapter_run")
_COUNTS: Final = ("tokens", *_RUNS)
_AT_LEAST_ZERO: Final = (*_COUNTS, "base", "adapter", "moved")
_HARMLESS: Final = ("synthetic", "public")

Scores = Annotated[tuple[float, ...], Field(max_length=_MOST, strict=False)]


class PatientScores(Section):
    """What base model and adapter say of some patients, as ``Seen`` has it, one number a patient each."""

    tokens: Scores
    base: Scores
    adapter: Scores
    base_run: Scores
    adapter_run: Scores
    moved: Scores
    aligned: Scores

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.tokens or {len(scores) for _, scores in self} != {len(self.tokens)}:
            raise ValueError("tokens: not of as many patients as all others, or of none")
        if len(self.tokens) < FEWEST:
            raise ValueError(f"tokens: of {len(self.tokens)} patients, and attacks need {FEWEST} of each kind")
        for name in _AT_LEAST_ZERO:
            if min(getattr(self, name)) < 0:
                raise ValueError(f"{name}: a patient's is below zero")
        for name in _COUNTS:
            if any(count != int(count) for count in getattr(self, name)):
                raise ValueError(f"{name}: a patient's is no whole number of tokens")
        if min(self.tokens) < 1:
            raise ValueError("tokens: a patient has none to be predicted")
        for name in _RUNS:
            if any(run > count for run, count in zip(getattr(self, name), self.tokens, strict=True)):
                raise ValueError(f"{name}: a patient's is longer than all tokens that are predicted")
        return self

    @classmethod
    def of(cls, seen: Seen) -> Self:
        """To six digits."""
        return cls(
            **{name: tuple(float(f"{score:.{_DIGITS}g}") for score in scores) for name, scores in vars(seen).items()}
        )

    @property
    def seen(self) -> Seen:
        """As attacks read it."""
        return Seen(**{name: np.array(scores, dtype=np.float64) for name, scores in self})


class AttackEvidence(EvidenceFile):
    """Scores of patients who were trained on, and of others; of a simulation of nobody who has to be protected.

    Attributes:
        package_sha256: of the files of the program that attacked, as the manifest has it.
        manifest_sha256: of the study.
        adapter_sha256: of the trained numbers that were attacked, as the ledger has them.
    """

    unlike = "they are no scores of attacks"
    counts_for = _WHY
    made_by = "attacks.json that `grandrounds adapter attack --attach` of this version"

    format: Literal["grandrounds/attacks/v1"] = FORMAT
    package_version: Version = __version__
    package_sha256: Hex32
    manifest_sha256: Hex32
    adapter_sha256: Hex32
    members: PatientScores
    others: PatientScores

    def require_study(self, manifest: Manifest, adapter_sha256: str) -> None:
        """Raises StudyError unless the scores are of this study's adapter, by its program, and of no real patient."""
        require_of_nobody(manifest.study, app_sha256=manifest.app_sha256)
        if self.package_sha256 != manifest.package_sha256:
            raise StudyError(
                f"the attacks ran files of SHA-256 {self.package_sha256}, and this study {manifest.package_sha256}",
                why="what another program takes for an attack's score may be another number",
                fix="attack the adapter with the program that the study ran, by `grandrounds adapter attack`",
            )
        if (self.manifest_sha256, self.adapter_sha256) != (manifest.sha256, adapter_sha256):
            raise StudyError(
                f"the attacks were made on the adapter {self.adapter_sha256[:16]}… of the study "
                f"{self.manifest_sha256[:16]}…, and this is {adapter_sha256[:16]}… of {manifest.sha256[:16]}…",
                why=_WHY,
                fix="attack this one, by `grandrounds adapter attack` on its folder",
            )


def require_of_nobody(study: Study, *, app_sha256: str | None) -> None:
    """Raises StudyError unless a study is a simulation, without an app, of patients who are synthetic or public."""
    protected = [site.name for site in study.sites if site.sensitivity not in _HARMLESS]
    if app_sha256 is not None:
        found = "it ran between institutions"
    elif protected:
        found = f"the records of {', '.join(protected)} are not said to be synthetic or public"
    else:
        return
    raise StudyError(
        f"scores of attacks are not kept with this study: {found}",
        why="each is computed from a patient's records, and no noise protects it",
        fix="a site attacks with its own records, for itself alone: `grandrounds client fetch DIR --attack`",
    )
