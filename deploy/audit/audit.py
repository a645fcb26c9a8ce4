"""An audit of a study: its twin as claimed, and then with each fault, scored alike."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from ...common.audit.evidence import AuditEvidence, CanaryScores, require_claim
from ...common.crypto.csprng import fresh_key
from ...common.errors import StudyError
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from .faults import AS_CLAIMED, Fault, faults
from .scores import likelihood_ratios, told_apart
from .texts import builtin_patients, require_text_twin, text_scores
from .twin import Tell, Twin

CONFIDENCE: Final = 0.95
_FEWEST_TEXTS: Final = 20
_STATED: Final[tuple[str, ...]] = (
    "The gradient canaries' twin holds nobody else: whoever a claim is made against knows all other patients' "
    "gradients, and takes them off, as those of public records.",
    "It trains no adapter, since a canary's gradient is the same at each.",
)
_OF_TEXTS: Final = "The text canaries' twins are simulations with synthetic patients, whose adapter alone is looked at."
_OF_NOTES: Final[tuple[str, ...]] = (
    "Synthetic notes are drawn from each twin's adapter at temperature 1, behind prompts of the kind that canaries "
    "begin with.",
    "An auxiliary adapter is trained on these notes alone, without noise; no other attack on them was tried.",
)


def require_auditable(study: Study, *, text_canaries: int = 0, synthetic_notes: int = 0) -> None:
    """Raises StudyError where a study, which need not be complete, cannot be audited so, whatever its adapter is."""
    require_claim(study)
    if 0 < text_canaries < _FEWEST_TEXTS:
        raise StudyError(
            f"{text_canaries} text canaries",
            why="a tenth of them is guessed to be in, and a tenth to be out: of so few nothing could be found",
            fix=f"give --text-canaries {_FEWEST_TEXTS} or more, or leave it out",
        )
    if synthetic_notes and not text_canaries:
        raise StudyError(
            f"{synthetic_notes} synthetic notes, and no text canaries",
            why="what notes tell is seen of the texts that were planted into the twin which they are from",
            fix=f"give --text-canaries {_FEWEST_TEXTS} or more as well",
        )
    if text_canaries:
        require_text_twin(study)


def audited(
    manifest: Manifest, *, canaries: int, text_canaries: int = 0, synthetic_notes: int = 0, tell: Tell
) -> AuditEvidence:
    """The evidence of an audit with so many gradient canaries.

    Text canaries stand among built-in patients; so many ``synthetic_notes`` of each twin's adapter are audited by them,
    too. Seed, statistic, confidence and faults are fixed before the first release; the seed is in the evidence. Raises
    StudyError as ``require_auditable`` does, and where the twin has no room for the canaries.
    """
    require_auditable(manifest.study, text_canaries=text_canaries, synthetic_notes=synthetic_notes)
    seed = fresh_key()
    twin = Twin.of(manifest, canaries=canaries, seed=seed)
    scored = [scores_of(twin, fault, tell) for fault in planted(twin.manifest)]
    stated = _STATED
    if text_canaries:
        scored += text_scores(
            manifest,
            count=text_canaries,
            synthetic_notes=synthetic_notes,
            patients=builtin_patients(manifest),
            seed=seed,
            tell=tell,
        )
        stated += (_OF_TEXTS, *(_OF_NOTES if synthetic_notes else ()))
    tell("computing the bounds")
    return AuditEvidence.of(
        twin=twin.manifest,
        canaries=scored,
        seed=seed.hex(),
        confidence=CONFIDENCE,
        stated=stated,
        synthetic_notes=synthetic_notes or None,
    )


def planted(manifest: Manifest) -> Iterator[Fault]:
    """The claim as it is, then the faults that a study can have: nothing is drawn again where there is one step.

    Under local trust sums of one site are judged, which no mask is on.
    """
    training, is_local = manifest.study.training, manifest.study.privacy.trust == "local"
    steps = manifest.max_attempts * training.local_steps
    yield AS_CLAIMED
    for fault in faults():
        if steps >= fault.least_steps and not (is_local and fault.leaves_mask):
            yield fault


def scores_of(twin: Twin, fault: Fault, tell: Tell = lambda doing: None) -> CanaryScores:
    """What an adversary makes of the twin with a ``fault``."""
    canaries, privacy = twin.canaries, twin.manifest.study.privacy
    seen = twin.seen(fault, lambda doing: tell(f"{fault.name}: {doing}"))
    judged, gauges = np.split(seen, [canaries.count + canaries.foils], axis=1)
    ratios = likelihood_ratios(
        judged,
        gauges=gauges,
        sampling_probability=privacy.sampling_probability,
        copies=canaries.copies if privacy.trust == "distributed" else 1,
    )
    scores = told_apart(ratios, seed=canaries.directions.seed)
    return CanaryScores.of(
        "gradient",
        fault.name,
        scores=scores[: canaries.count],
        bits=canaries.bits,
        foils=scores[canaries.count :],
    )
