"""Attacks on a finished adapter with a site's own records: what it tells of them, for that site alone."""

from collections.abc import Callable, Iterator
from typing import Final

from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...client.site.site_records import SiteRecords
from ...client.site.training_view import NEVER_LEAVES
from ...common.data.store import Unit
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError
from ...common.model.base_folder import vocabulary_size_of
from ...common.study.study import Study
from ...common.system.files import write_atomically
from ...server.report.findings import Findings, promise
from ..site_ops.fetch import check_apart, model_at_site
from ..verify.adapter_claims import adapter_vector
from ..verify.case import Case
from ..verify.evidence import read_evidence
from .attack import attacked
from .patients import some_patients

WRITTEN: Final = "attack.txt"


def attack(folder: SiteFolder, study: JoinedStudy, *, tell: Callable[[str], None]) -> Iterator[str]:
    """Attack the adapter that ``fetch`` verified here; what was found, in lines, as it is kept beside the results.

    Members are the site's own patients, the others those whom site.toml names as ``held_out``, read as the study reads
    records. Nothing is signed, sent, logged or entered in the site's state. ``tell`` hears how far it is. Raises
    DataError, also where patients of either kind are too few; ModelError, StudyError and StorageError.
    """
    manifest = study.manifest()
    case = Case(evidence=read_evidence(study.results), manifest_hash=manifest.sha256)
    members, others = _patients(folder, manifest.study)
    seen = attacked(
        model_at_site(folder, study),
        adapter_vector(case, trained=True),
        manifest,
        members=members,
        others=others,
        tell=tell,
    )
    found = Findings.of(*seen, curve=promise(manifest))
    lines = [f"attacks on the adapter of study {study.name}, with records of this site", *found.lines(), NEVER_LEAVES]
    path = study.kept / WRITTEN
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)
    yield from lines
    yield f"kept in {path}, for its owner alone"


def _patients(folder: SiteFolder, study: Study) -> tuple[list[Unit], list[Unit]]:
    """Those who were trained on and those held out, or some of them."""
    settings = folder.settings()
    if settings.held_out is None:
        raise DataError(
            "the adapter cannot be attacked: site.toml names no records that are held out (held_out)",
            why="an attack shows only by how it treats patients who were trained on and others who were not",
            fix="hold out whole patients at random before the next study; of those trained on, none is another",
        )
    trained = SiteRecords.open(folder, study)
    tokenisation = Tokenisation.load(str(settings.model), vocabulary_size=vocabulary_size_of(settings.model))
    held_out = SiteRecords.beside(folder, study, settings.held_out, tokenisation=tokenisation)
    check_apart(held_out.identifiers, trained.identifiers, settings.similar_identifiers)
    return some_patients([trained], study, who="were trained on"), some_patients([held_out], study, who="are held out")
