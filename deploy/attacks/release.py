"""Attacks on a release, with records of patients whom it was trained on and of others, then and now."""

from collections.abc import Callable, Sequence

import numpy as np

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

_B = "lora_B", "lora_embedding_B"  # at zero, what an adapter adds is nothing


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

    The reference is the base model. ``tell`` hears how far it is. Raises StudyError, DataError, also where a patient is
    both or patients of a kind are too few, and ModelError.
    """
    study = manifest.study
    if study.model.lora.dora:
        raise StudyError(
            "the release is a DoRA adapter, which has no numbers at which it is the base model",
            why="attacks compare what it says of a patient with what the base model says",
            fix="measure its drift without --members",
        )
    preparation = Preparation(
        tokenisation=tokenisation, max_tokens=study.data.max_tokens, overlap=study.data.overlap, similar="different"
    )
    trained, *untrained = (SiteRecords.of(preparation.of_source(source), None) for source in (members, *others))
    for records in untrained:
        check_apart(records.identifiers, trained.identifiers, "different")
    patients = some_patients([trained], study, who="were trained on")
    compared = [some_patients([records], study, who="were not") for records in untrained]
    none = {
        name: np.zeros_like(tensor) if any(part in name for part in _B) else tensor
        for name, tensor in adapter.tensors.items()
    }
    scorer = Scorer(
        model=model,
        before=vector_of(none, kind=adapter.lora.kind, trained=True),
        after=vector_of(adapter.tensors, kind=adapter.lora.kind, trained=True),
        clipping_norm=study.privacy.clipping_norm,
    )
    seen = scorer.seen(patients, lambda done: tell(f"attacking the release with records it was trained on, {done} %"))
    return [
        Findings.of(
            seen,
            scorer.seen(each, lambda done: tell(f"attacking the release with records of others, {done} %")),
            curve=promise(manifest),
        )
        for each in compared
    ]
