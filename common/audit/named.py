"""An audit that a study names: the audit.json that its sites have with it, and sign by its hash."""

from pathlib import Path

from ..crypto.identity import sha256
from ..errors import StudyError
from ..schema import known
from ..study.first_adapter import BY_HASH
from ..study.study import Study
from .evidence import AuditEvidence

_WHY = "sites sign the study with what its audit found before them"


def named_audit(study: Study, path: Path | None = None) -> bytes | None:
    """The audit of a study, from the file that it names, or from ``path`` where it names a hash; None if it has none.

    Raises StudyError.
    """
    named = study.about.audit
    if named is None:
        return None
    if not named.startswith(BY_HASH):
        return _read(Path(named))
    if path is None:
        raise _unfit(f"the study names its audit by the hash {named} alone")
    data = _read(path)
    if name_of(data) != named:
        raise _unfit(f"{path} is {name_of(data)}, and not {named}")
    return data


def name_of(data: bytes) -> str:
    """How a study that is fixed names the audit."""
    return f"{BY_HASH}{sha256(data)}"


def without_audit(study: Study) -> Study:
    """The study as it was before it was audited."""
    return study.model_copy(update={"about": study.about.model_copy(update={"audit": None})})


def with_pinned_audit(study: Study) -> Study:
    """The study with the hash of its audit in place of the file. Raises StudyError."""
    named = study.about.audit
    if named is None or named.startswith(BY_HASH):
        return study
    name = name_of(known(named_audit(study)))
    return study.model_copy(update={"about": study.about.model_copy(update={"audit": name})})


def require_sound(data: bytes | None, study: Study, *, package_sha256: str) -> None:
    """Raises StudyError unless sites may be given the audit with this complete study, if there is one.

    It has to be of the study's parameters and of the program with that hash; its bounds have to follow from its scores,
    which takes seconds, and be within the claim.
    """
    if data is None:
        return
    evidence = AuditEvidence.parse(data)
    evidence.require_code(package_sha256)
    evidence.require_parameters(study)
    evidence.require_bounds()
    if evidence.headline.epsilon > evidence.claimed:
        raise StudyError(
            f"the study names an audit that refutes it: ε is at least {evidence.headline.epsilon:.3g}, and "
            f"{evidence.claimed:g} is claimed",
            why="a leak that was seen would be the sites' patients'",
            fix="do not run this study; audit once more to rule out the one run in twenty that errs, and report it",
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unfit(f"{path} cannot be read: {error.strerror}") from error


def _unfit(what: str) -> StudyError:
    return StudyError(
        what,
        why=_WHY,
        fix="make it, as [about] audit names it, by `grandrounds audit study.toml --output audit.json`; of a study "
        "that is fixed, put back its own: audit.json in study.zip and in the study's folder",
    )
