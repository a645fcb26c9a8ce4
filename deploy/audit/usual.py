"""The audit that a simulation makes of itself, so that its report has one."""

from typing import Final

from ...common.study.manifest import Manifest
from ...server.run.progress import Observer, PhaseProgress, Told, phase
from .audit import audited, planted
from .twin import room_in_twin

CANARIES: Final = 1000  # so that it takes seconds
_FEWEST: Final = 20
# Numbers of canaries' gradients, and of what sites exchange, in all runs: of the built-in study a tenth.
_MOST_WORK: Final = 1e9


def usual_audit(manifest: Manifest, observe: Observer) -> bytes | None:
    """audit.json of a study; None where nothing is claimed, where there is no room, or where it would take minutes."""
    why_not = _why_not(manifest)
    if why_not:
        observe(Told(text=f"no audit is part of the report: {why_not}"))
        return None
    canaries, faults = _canaries(manifest), len(list(planted(manifest)))
    is_local = manifest.study.privacy.trust == "local"
    parts = faults * (len(manifest.study.sites) if is_local else manifest.max_attempts) + 1  # the bounds, last
    done = 0

    def tell(doing: str) -> None:
        nonlocal done
        observe(PhaseProgress(name="audit", done=done, total=parts))
        done += 1

    with phase(observe, "audit", f"{canaries:,} planted canaries in a twin of the study, and {faults - 1} faults"):
        return audited(manifest, canaries=canaries, tell=tell).to_json()


def _why_not(manifest: Manifest) -> str:
    study = manifest.study
    if not study.privacy.noise:
        return "the study adds no noise, and an audit tests a claim"
    if _canaries(manifest) < _FEWEST:
        return f"an adapter of {manifest.dimension} numbers has no room for {_FEWEST} planted canaries"
    steps = manifest.max_attempts * study.training.local_steps * len(list(planted(manifest)))
    drawn = study.privacy.sampling_probability * _canaries(manifest) / 2 + len(study.sites) ** 2
    if steps * drawn * manifest.dimension > _MOST_WORK:
        return "of a study this large it takes minutes; `grandrounds audit DIR --attach DIR` puts one beside the report"
    return ""


def _canaries(manifest: Manifest) -> int:
    return min(CANARIES, room_in_twin(manifest))
