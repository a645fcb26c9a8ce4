"""The study that is audited: as people wrote it, or as its sites signed it."""

from pathlib import Path
from typing import Final

from ...common.audit.evidence import AuditedParameters
from ...common.audit.named import without_audit
from ...common.crypto.identity import Identity
from ...common.errors import StorageError, StudyError
from ...common.model.language_model import LanguageModel
from ...common.study.artefacts import MANIFEST
from ...common.study.completion import complete_study
from ...common.study.first_adapter import first_adapter_of
from ...common.study.manifest import Manifest, new_manifest
from ...common.system.code_pin import check_code
from ...server.run.study_folder import StudyFolder
from ..builtin.models import base_model_folder, with_lasting_name
from ..simulation.config import read_simulation, read_tables
from .twin import Tell

_WHAT: Final = "a study's folder, its study.json, or the study.toml that it is written in"


def read_subject(place: Path, tell: Tell) -> Manifest:
    """The manifest of the study at ``place``; of a study.toml the one that it would have, but for its keys.

    Of a model no more is used than the size of the adapter on it. Raises StorageError where there is no study,
    StudyError where it is unfit or another version's, ModelError.
    """
    if not place.exists():
        raise StorageError(f"{place} does not exist", why="its study would be audited", fix=f"name {_WHAT}")
    folder = place if place.is_dir() else place.parent
    if place.is_dir() or place.name == MANIFEST:
        if not (folder / MANIFEST).is_file():
            raise StorageError(f"{folder} holds no {MANIFEST}", why="no study was begun there", fix=f"name {_WHAT}")
        manifest = StudyFolder(folder).manifest()
        check_code(version=manifest.package_version, sha256=manifest.package_sha256)
        return manifest
    if place.suffix != ".toml":
        raise StudyError(f"{place.name} is neither {MANIFEST} nor TOML", why="it is read as one", fix=f"name {_WHAT}")
    return _planned(place, tell)


def require_alike(audited: Manifest, other: Manifest, *, place: Path) -> None:
    """Raises StudyError unless both studies, the other at ``place``, protect patients by the same parameters."""
    if AuditedParameters.of(audited.study) != AuditedParameters.of(other.study):
        raise StudyError(
            f"the study in {place} has other parameters than the one to be audited",
            why="what a twin shows holds for the parameters that it ran with",
            fix=f"audit that one: grandrounds audit {place} --attach {place}",
        )


def _planned(place: Path, tell: Tell) -> Manifest:
    study = without_audit(read_simulation(read_tables(place, {}))[0])  # which names what is made now
    first = first_adapter_of(study)
    tell("calibrating the noise")
    study = complete_study(with_lasting_name(study))
    tell(f"loading the model {study.model.name}, for the size of its adapter")
    model = LanguageModel.load(
        base_model_folder(study.model.name), study.model.lora, seed=0, precision=study.model.precision
    )
    if first is not None:
        first.put_on(model)
    return new_manifest(
        study,
        site_keys={site.name: Identity.generate().public_key for site in study.sites},
        server_key=Identity.generate().public_key,
        model=model,
        model_sha256=model.folder_sha256,
    )
