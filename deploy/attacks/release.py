"""Attacks on a release, with records of patients whom it was trained on and of others, then and now."""

from collections.abc import Callable, Sequence

from ...client.site.site_records import SiteRecords
from ...common.data.preparation import Preparation
from ...common.data.tokenisation import Tokenisation
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
    tell: Callable[[str], None],
) -> list[Findings]:
    """What attacks find of the ``adapter`` on the ``model``, with the same members beside each of the ``others``.

    The reference is the base model. ``tell`` hears how far it is. Raises DataError, also where a patient is both or
    patients of a kind are too few, and ModelError.
    """
    study = manifest.study
    preparation = Preparation(
        tokenisation=tokenisation, max_tokens=study.data.max_tokens, overlap=study.data.overlap, similar="different"
    )
    trained, *untrained = (SiteRecords.of(preparation.of_source(source), None) for source in (members, *others))
    for records in untrained:
        check_apart(records.identifiers, trained.identifiers, "different")
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
