"""What an audit leaves: its canaries' scores, and the bounds that anybody can recompute from them (audit.json)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..crypto.identity import Hex32, canonical_json, sha256
from ..errors import StudyError
from ..privacy.events import Schedule
from ..schema import Section, Version, Words, known, validated
from ..study.completion import schedule_of
from ..study.manifest import Manifest
from ..study.study import PrivacySection, SecaggSection, Study
from ..version import __version__
from .bounds import CHOSEN, Kind, Method, f_dp_bound, line_up_bound, one_run_bound
from .coins import bits_of, coins
from .evidence_file import EvidenceFile
from .roc import Estimate, auc

FORMAT: Final = "grandrounds/audit/v1"
CLAIMED: Final = "as claimed"
Protection = Literal[
    "as claimed",
    "noise off",
    "noise forgotten at one site",
    "half the noise",
    "a mask left in",
    "a draw reused",
]

_LABEL: Final = b"grandrounds/audited/v1\n"
_WHY: Final = "what an audit found counts for the parameters that its twin ran with, and for its own scores"
_DIGITS: Final = 6
_TOLERANCE: Final = 0.01  # of a bound: the search ends before it, and its last digits are those of the machine
_MOST: Final = 1 << 18

Scores = Annotated[tuple[float, ...], Field(max_length=_MOST, strict=False)]


class AuditedParameters(Section):
    """What a study and its twin have in common: all that protects a patient, and no site's name, text or key."""

    privacy: PrivacySection
    secagg: SecaggSection
    sites: int = Field(ge=3)
    max_attempts: int = Field(ge=1)
    local_steps: int = Field(ge=1)
    records_per_unit: int = Field(ge=1)

    @model_validator(mode="after")
    def _claiming(self) -> Self:
        if None in (self.privacy.target_epsilon, self.privacy.delta, self.privacy.noise_multiplier):
            raise ValueError("privacy: of a study that claims nothing")
        return self

    @classmethod
    def of(cls, study: Study) -> Self:
        """Those of a complete study; raises StudyError for one without noise."""
        require_claim(study)
        return cls(
            privacy=study.privacy,
            secagg=study.secagg,
            sites=len(study.sites),
            max_attempts=known(study.training.max_attempts),
            local_steps=study.training.local_steps,
            records_per_unit=study.data.records_per_unit,
        )

    @property
    def sha256(self) -> str:
        """The hash of all of them."""
        return sha256(_LABEL + canonical_json(self.model_dump(mode="json")))

    @property
    def schedule(self) -> Schedule:
        """What the claim covers."""
        return schedule_of(
            self.privacy,
            local_steps=self.local_steps,
            attempts=self.max_attempts,
            delta=self.delta,
            noise_multiplier=known(self.privacy.noise_multiplier),
        )

    @property
    def delta(self) -> float:
        """δ of the claim."""
        return known(self.privacy.delta)


def require_claim(study: Study) -> None:
    """Raises StudyError for a study without noise; it need not be complete."""
    if not study.privacy.noise:
        raise StudyError(
            "the study adds no noise", why="an audit tests a claim, and it makes none", fix="audit one with noise"
        )


class CanaryScores(Section):
    """How sure an auditor is of each canary that it was in, in the order in which canaries were drawn, before any run.

    ``protection`` is what the twin had of it. ``foils`` are scores of what was never in, made and scored as canaries
    are. Higher is surer.
    """

    kind: Kind
    protection: Protection
    scores: Scores
    bits: Annotated[tuple[bool, ...], Field(max_length=_MOST, strict=False)]
    foils: Scores = ()

    @model_validator(mode="after")
    def _matching(self) -> Self:
        if len(self.scores) != len(self.bits):
            raise ValueError(f"bits: {len(self.bits)} for {len(self.scores)} canaries")
        return self

    @classmethod
    def of(
        cls,
        kind: Kind,
        protection: Protection,
        *,
        scores: Iterable[float],
        bits: Iterable[bool],
        foils: Iterable[float] = (),
    ) -> Self:
        """From numbers of any library, to six digits."""
        return cls(
            kind=kind,
            protection=protection,
            scores=_rounded(scores),
            bits=tuple(map(bool, bits)),
            foils=_rounded(foils),
        )

    def area(self, *, confidence: float) -> Estimate | None:
        """The area under the ROC curve of canaries that were in and that were not; None where there are none of one."""
        scores, bits = np.array(self.scores), np.array(self.bits)
        return auc(scores[bits], scores[~bits], confidence=confidence) if 0 < bits.sum() < len(bits) else None

    def bounds(self, parameters: AuditedParameters, *, confidence: float) -> tuple["Bound", ...]:
        """Every method's that these scores admit; the chosen one's first."""
        delta = parameters.delta
        found: dict[Method, float] = {
            "Gaussian curve": f_dp_bound(self.scores, self.bits, delta=delta, confidence=confidence),
            "one run": one_run_bound(self.scores, self.bits, delta=delta, confidence=confidence),
        }
        if CHOSEN[self.kind] == "line-up":
            found["line-up"] = line_up_bound(
                self.scores, self.bits, self.foils, schedule=parameters.schedule, delta=delta, confidence=confidence
            )
        return tuple(
            Bound(kind=self.kind, protection=self.protection, method=method, epsilon=found[method])
            for method in sorted(found, key=lambda method: method != CHOSEN[self.kind])
        )


class Bound(Section):
    """A lower bound on ε at the claim's δ, with the evidence's confidence."""

    kind: Kind
    protection: Protection
    method: Method
    epsilon: float = Field(ge=0, le=1e12)

    @property
    def is_chosen(self) -> bool:
        """Whether the method is the one that was chosen beforehand for such canaries."""
        return self.method == CHOSEN[self.kind]


class AuditEvidence(EvidenceFile):
    """An audit of a twin: a study of the same parameters on synthetic patients, with canaries among them.

    Attributes:
        package_sha256: of the files of this program that the twin ran, as the manifest has it.
        twin_sha256: of the manifest that the twin ran under.
        dimension: how many numbers the adapter has that both train.
        confidence: with which the chosen methods' bounds of all kinds hold at once, where all is as claimed.
        seed: of coins and canaries, chosen before the run. Noise and draws have none.
        stated: what the auditor says of the twin that scores do not show, as what was left out of it.
        synthetic_notes: how many each twin's adapter wrote, by which alone canaries were scored once more.
    """

    unlike = "it is no evidence of an audit"
    counts_for = _WHY
    made_by = "audit.json that `grandrounds audit` of this version"

    format: Literal["grandrounds/audit/v1"] = FORMAT
    package_version: Version = __version__
    package_sha256: Hex32
    twin_sha256: Hex32
    dimension: int = Field(ge=1, le=2**32)
    parameters: AuditedParameters
    confidence: float = Field(ge=0.5, lt=1)
    seed: Hex32
    stated: Annotated[tuple[Words, ...], Field(max_length=20, strict=False)] = ()
    canaries: Annotated[tuple[CanaryScores, ...], Field(min_length=1, max_length=20, strict=False)]
    bounds: Annotated[tuple[Bound, ...], Field(strict=False)]
    synthetic_notes: int | None = Field(default=None, ge=1, le=_MOST)

    @model_validator(mode="after")
    def _of_these_canaries(self) -> Self:
        runs = [(canaries.kind, canaries.protection) for canaries in self.canaries]
        if len(set(runs)) != len(runs):
            raise ValueError("canaries: two runs of one kind with one protection")
        if any((kind, CLAIMED) not in runs for kind, _ in runs):
            raise ValueError("canaries: of each kind there needs to be the run in which all is as claimed")
        if any(kind == "synthetic notes" for kind, _ in runs) != (self.synthetic_notes is not None):
            raise ValueError(
                "synthetic_notes: how many there were belongs to scores by synthetic notes, and to no others"
            )
        chosen = [(bound.kind, bound.protection) for bound in self.bounds if bound.is_chosen]
        if sorted(chosen) != sorted(runs):
            raise ValueError("bounds: not one of the chosen method for each of the canaries' runs")
        return self

    @classmethod
    def of(
        cls,
        *,
        twin: Manifest,
        canaries: Sequence[CanaryScores],
        seed: str,
        confidence: float = 0.95,
        stated: Sequence[str] = (),
        synthetic_notes: int | None = None,
    ) -> Self:
        """The evidence of a twin's runs, with the bounds that follow from it. Raises StudyError."""
        parameters = AuditedParameters.of(twin.study)
        return validated(
            cls,
            {
                "package_sha256": twin.package_sha256,
                "twin_sha256": twin.sha256,
                "dimension": twin.dimension,
                "parameters": parameters,
                "confidence": confidence,
                "seed": seed,
                "stated": tuple(stated),
                "canaries": tuple(canaries),
                "bounds": tuple(_bounds(canaries, parameters, confidence=confidence)),
                "synthetic_notes": synthetic_notes,
            },
            why=_WHY,
        )

    @property
    def claimed(self) -> float:
        """ε that the study promises."""
        return known(self.parameters.privacy.target_epsilon)

    def chosen(self, kind: Kind, protection: Protection = CLAIMED) -> Bound | None:
        """The bound by the method that was chosen for such canaries, if there were any."""
        found = (bound for bound in self.bounds if (bound.kind, bound.protection) == (kind, protection))
        return next((bound for bound in found if bound.is_chosen), None)

    @property
    def headline(self) -> Bound:
        """The largest of the chosen bounds with all protection; they hold at once, so that it may be picked."""
        found = (bound for bound in self.bounds if bound.is_chosen and bound.protection == CLAIMED)
        return max(found, key=lambda bound: bound.epsilon)

    def require_of(self, manifest: Manifest) -> None:
        """Raises StudyError unless the twin was of the manifest's study, and ran its program."""
        self.require_code(manifest.package_sha256)
        self.require_parameters(manifest.study)
        if self.dimension != manifest.dimension:
            raise StudyError(
                f"the audited twin trained {self.dimension:,} numbers, and this study trains {manifest.dimension:,}",
                why=_WHY,
                fix="audit this study, by `grandrounds audit` on its folder",
            )

    def require_parameters(self, study: Study) -> None:
        """Raises StudyError that names each parameter in which the twin was not this complete ``study``'s."""
        theirs, ours = (
            _flat(parameters.model_dump(mode="json")) for parameters in (self.parameters, AuditedParameters.of(study))
        )
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            raise StudyError(
                "the audited twin is not this study’s: "
                + "; ".join(f"{name} is {theirs.get(name)} there and {ours[name]} here" for name in different),
                why=_WHY,
                fix="audit this study, by `grandrounds audit` on its folder",
            )

    def require_code(self, package_sha256: str) -> None:
        """Raises StudyError unless the twin ran the files of that hash, which a manifest has."""
        if self.package_sha256 != package_sha256:
            raise StudyError(
                f"the audited twin ran files of SHA-256 {self.package_sha256}, and this study {package_sha256}",
                why="what is not in one program may be in another, whatever the parameters",
                fix="audit this study, by `grandrounds audit` on its folder, with the program that ran it",
            )

    def require_bounds(self) -> None:
        """Raises StudyError where coins do not follow from the seed, or a bound from the scores; takes seconds."""
        for run in self.canaries:
            own = bits_of(coins(run.kind, len(run.bits), seed=bytes.fromhex(self.seed)))
            if run.bits != tuple(own.tolist()):
                raise StudyError(
                    f"the coins of {run.kind} canaries, {run.protection}, do not follow from the audit’s seed",
                    why="who was in has to be drawn before the run: whoever picks it afterwards finds what they like",
                    fix="audit the study anew",
                )
        found = list(_bounds(self.canaries, self.parameters, confidence=self.confidence))
        stated = {(bound.kind, bound.protection, bound.method): bound.epsilon for bound in self.bounds}
        for bound in found:
            told = stated.pop((bound.kind, bound.protection, bound.method), None)
            if told is None or abs(told - bound.epsilon) > _TOLERANCE * max(1.0, bound.epsilon):
                raise StudyError(
                    f"the audit states ε ≥ {told} of {bound.kind} canaries, {bound.protection}, by the method "
                    f"{bound.method}, and {bound.epsilon:.4g} follows from the scores",
                    why=_WHY,
                    fix="audit the study anew",
                )
        if stated:
            raise StudyError("the audit states bounds twice, or of no scores", why=_WHY, fix="audit the study anew")


def _bounds(canaries: Sequence[CanaryScores], parameters: AuditedParameters, *, confidence: float) -> Iterator[Bound]:
    """Those of all runs; each kind of canary has an equal part of the chance to err (Bonferroni)."""
    each = 1 - (1 - confidence) / len({run.kind for run in canaries})
    for run in canaries:
        yield from run.bounds(parameters, confidence=each)


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{number:.{_DIGITS}g}") for number in numbers)


def _flat(value: Mapping[str, object], place: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{place}{name}.") if isinstance(item, Mapping) else {f"{place}{name}": item}
    return flat
