"""The study that is audited: as people wrote it, or as its sites signed it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from ...common.audit.evidence import AuditedParameters, require_claim
from ...common.audit.named import without_audit
from ...common.crypto.identity import Identity
from ...common.errors import StorageError, StudyError
from ...common.study.artefacts import MANIFEST
from ...common.study.completion import complete_study
from ...common.study.first_adapter import FirstAdapter, first_adapter_of
from ...common.study.manifest import Manifest, new_manifest
from ...common.study.study import Study
from ...common.system.code_pin import check_code
from ...server.run.study_folder import StudyFolder
from ..builtin.models import base_model_folder, with_lasting_name
from ..simulation.config import read_simulation, read_tables

_FEWEST_TEXTS: Final = 20
_MOST_SITES: Final = 50

Tell = Callable[[str], None]

_WHAT: Final = "a study's folder, its study.json, or the study.toml that it is written in"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A ``study`` that is to be audited: as it was ``signed``, or as it is written, with its ``first`` adapter.

    What is refused of the study alone is refused before it is ``completed``, which takes seconds, and before there is a
    ``manifest``, which takes the base model.
    """

    study: Study
    signed: Manifest | None = None
    first: FirstAdapter | None = None

    def completed(self, tell: Tell) -> Self:
        """With all that follows from the study. Raises StudyError and PrivacyError."""
        if self.signed is not None:
            return self
        tell("calibrating the noise")
        return replace(self, study=complete_study(self.study))

    def manifest(self, tell: Tell) -> Manifest:
        """Of a completed one: what was signed, or the manifest that it would have, but for its keys.

        Of a model no more is used than the size of the adapter on it. Raises ModelError.
        """
        if self.signed is not None:
            return self.signed
        from ...common.model.language_model import LanguageModel  # with PyTorch, before which much is refused

        study = self.study
        tell(f"loading the model {study.model.name}, for the size of its adapter")
        model = LanguageModel.load(
            base_model_folder(study.model.name), study.model.lora, seed=0, precision=study.model.precision
        )
        if self.first is not None:
            self.first.put_on(model)
        return new_manifest(
            study,
            site_keys={site.name: Identity.generate().public_key for site in study.sites},
            server_key=Identity.generate().public_key,
            model=model,
            model_sha256=model.folder_sha256,
        )


def read_subject(place: Path) -> Subject:
    """The study at ``place``.

    Raises StorageError where there is none, StudyError where it is unfit or another version's.
    """
    if not place.exists():
        raise StorageError(f"{place} does not exist", why="its study would be audited", fix=f"name {_WHAT}")
    if place.is_dir() or place.name == MANIFEST:
        manifest = signed_in(place if place.is_dir() else place.parent)
        return Subject(study=manifest.study, signed=manifest)
    if place.suffix != ".toml":
        raise StudyError(f"{place.name} is neither {MANIFEST} nor TOML", why="it is read as one", fix=f"name {_WHAT}")
    study = without_audit(read_simulation(read_tables(place, {}))[0])  # which names what is made now
    return Subject(study=with_lasting_name(study), first=first_adapter_of(study))


def signed_in(folder: Path) -> Manifest:
    """The manifest in a study's folder. Raises StorageError where there is none, StudyError where it is unfit."""
    if not (folder / MANIFEST).is_file():
        raise StorageError(f"{folder} holds no {MANIFEST}", why="no study was begun there", fix=f"name {_WHAT}")
    manifest = StudyFolder(folder).manifest()
    check_code(version=manifest.package_version, sha256=manifest.package_sha256)
    return manifest


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
        _require_text_twin(study)


def _require_text_twin(study: Study) -> None:
    """Raises StudyError where no twin of text canaries can be made of a study, which need not be complete."""
    if study.model.first_adapter is not None or study.data.public is not None:
        raise StudyError(
            "text canaries of a study with a first adapter or public records",
            why="its manifest has the hashes of their files, and the twin would need the files",
            fix="leave --text-canaries out; gradient canaries depend on neither",
        )
    if len(study.sites) > _MOST_SITES:
        raise StudyError(
            f"text canaries at {len(study.sites)} sites",
            why=f"there are built-in patients of at most {_MOST_SITES}",
            fix="leave --text-canaries out",
        )


def require_alike(audited: Study, other: Study, *, place: Path) -> None:
    """Raises StudyError unless two complete studies, the other at ``place``, have the same that protects patients."""
    if AuditedParameters.of(audited) != AuditedParameters.of(other):
        raise StudyError(
            f"the study in {place} has other parameters than the one to be audited",
            why="what a twin shows holds for the parameters that it ran with",
            fix=f"audit that one: grandrounds audit {place} --attach {place}",
        )


def require_one_size(audited: Manifest, other: Manifest, *, place: Path) -> None:
    """Raises StudyError unless the adapter of the study at ``place`` has as many trained numbers as the twin's."""
    if audited.dimension != other.dimension:
        raise StudyError(
            f"the study in {place} trains {other.dimension:,} numbers, and the one to be audited {audited.dimension:,}",
            why="what a twin shows holds for an adapter of its size",
            fix=f"audit that one: grandrounds audit {place} --attach {place}",
        )
