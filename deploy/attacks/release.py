"""Attacks on a release, with records of patients whom it was trained on and of others, then and now."""

from collections.abc import Callable, Sequence

from ...client.site.folder import SiteFolder
from ...client.site.site_records import SiteRecords
from ...common.data.preparation import Preparation
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StudyError
from ...common.model.adapter_file import vector_of
from ...common.model.language_model import LanguageModel
from ...common.sources.source import DataSource
from ...common.study.manifest import Manifest
from ...server.report.findings import Findings, promise
from ..adapter.finished import FinishedAdapter
from ..site_ops.fetch import check_apart
from .patients import some_patients
from .scores import Scorer


def attack_release(
    model: LanguageModel,
    tokenisation: Tokenisation,
    adapter: FinishedAdapter,
    manifest: Manifest,
    *,
    members: DataSource,
    others: Sequence[DataSource],
    site: SiteFolder | None = None,
    tell: Callable[[str], None],
) -> list[Findings]:
    """What attacks find of the ``adapter`` on the ``model``, with the same members beside each of the ``others``.

    Of a ``site``'s records, nobody is read who opted out there, and what is read is minimised as its policy says: of
    patients who have to be protected, a site of the study has to be named. The reference is the base model. ``tell``
    hears how far it is. Raises StudyError, StorageError, ModelError, and DataError, also where a patient is both or
    patients of a kind are too few.
    """
    study = manifest.study
    require_site(manifest, site)

    def read(source: DataSource) -> SiteRecords:
        if site is not None:
            return SiteRecords.beside(site, study, source, tokenisation=tokenisation)
        preparation = Preparation(
            tokenisation=tokenisation, max_tokens=study.data.max_tokens, overlap=study.data.overlap, similar="different"
        )
        return SiteRecords.of(preparation.of_source(source), None)

    similar = "different" if site is None else site.settings().similar_identifiers
    trained, *untrained = map(read, (members, *others))
    for records in untrained:
        check_apart(records.identifiers, trained.identifiers, similar)
    patients = some_patients([trained], study, who="were trained on")
    compared = [some_patients([records], study, who="were not") for records in untrained]
    trained_numbers = vector_of(adapter.tensors, kind=adapter.lora.kind, trained=True)
    scorer = Scorer.against_base(model, trained_numbers, clipping_norm=study.privacy.clipping_norm)
    seen = scorer.seen(patients, lambda done: tell(f"attacking the release with records it was trained on, {done} %"))
    return [
        Findings.of(
            seen,
            scorer.seen(each, lambda done: tell(f"attacking the release with records of others, {done} %")),
            curve=promise(manifest),
        )
        for each in compared
    ]


def require_site(manifest: Manifest, site: SiteFolder | None) -> None:
    """Raises StudyError where members are patients of a site, and none of the study's is named; StorageError."""
    if manifest.app_sha256 is None:
        return
    if site is None:
        raise StudyError(
            "the release is of a study between institutions, and which site its members are patients of is not said",
            why="who opted out there is read for nothing, and records are minimised as the site's policy says",
            fix="name the site's folder, on its own machine: --site DIR",
        )
    if site.identity().public_key not in manifest.site_keys.values():
        raise StudyError(
            f"{site.path} is the folder of no site of the release's study: its key is none of "
            f"{', '.join(sorted(manifest.site_keys))}",
            why="members are patients of one of them: its list says who opted out, its policy what is minimised",
            fix="name that site's folder, on its own machine: --site DIR",
        )
