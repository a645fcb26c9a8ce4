"""An audit of a study: its twin as claimed, and then with each fault, scored alike."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from ...common.audit.evidence import AuditEvidence, CanaryScores
from ...common.crypto.csprng import fresh_key
from ...common.study.manifest import Manifest
from .faults import AS_CLAIMED, Fault, faults
from .scores import likelihood_ratios, told_apart
from .subject import Tell, require_auditable
from .texts import builtin_patients, text_scores
from .twin import Twin

CONFIDENCE: Final = 0.95
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
