"""Attacks on the adapter of a finished simulation, with the records that it was trained on and those for evaluation."""

from collections.abc import Callable
from pathlib import Path

from ...client.site.site_records import SiteRecords
from ...common.data.preparation import Preparation
from ...common.errors import StudyError
from ...common.model.language_model import LanguageModel
from ...common.sources.source import DataSource
from ..adapter.finished import FinishedAdapter
from ..simulation.config import prepare_records, read_simulation
from ..simulation.folder import SimulationFolder
from ..simulation.site_data import read_all
from ..verify.adapter_claims import adapter_vector
from ..verify.case import Case
from ..verify.evidence import read_evidence
from .attack import attack_adapter
from .findings import Findings
from .patients import some_patients


def attack_simulation(folder: Path, *, tell: Callable[[str], None]) -> Findings:
    """What attacks find of the adapter in a simulation's folder, which is compared with its study before.

    Members are the patients of all sites, the others those of the evaluation set. ``tell`` hears how far it is. Raises
    StorageError, StudyError, DataError and ModelError.
    """
    FinishedAdapter.read(folder)  # which refuses one that is not shown to be its study's
    simulated = SimulationFolder.open(folder)
    manifest, private = simulated.manifest(), simulated.private()
    study, case = manifest.study, Case(evidence=read_evidence(folder), manifest_hash=None)
    tell("reading records")
    _, simulation = read_simulation(private.settings)
    records = prepare_records(simulation, lambda event: None)
    if set(records.cohorts) != {site.name for site in study.sites}:
        raise StudyError(
            f"{folder} does not say what its sites' records were read from",
            why="attacks need the records that the adapter was trained on",
            fix="attack a simulation that `grandrounds simulate` made; one that a program made has records of its own",
        )
    data = read_all(
        study,
        records.cohorts,
        records.evaluation,
        folder=simulated.prepared,
        opted_out=records.opted_out,
        similar=records.similar_identifiers,
        progress=lambda done: None,
    )
    preparation = Preparation(
        tokenisation=data.tokenisation,
        max_tokens=study.data.max_tokens,
        overlap=study.data.overlap,
        similar="different",
    )
    evaluated = SiteRecords.of(preparation.of_source(DataSource.of(records.evaluation)), None)
    members = some_patients(data.sites.values(), study, who="were trained on")
    others = some_patients([evaluated], study, who="are in the evaluation set")
    tell("loading the model")
    model = LanguageModel.load(
        data.base,
        study.model.lora,
        seed=private.seed,
        precision=study.model.precision,
        sha256=manifest.model_sha256,
        setting="the study's model.name",
    )
    if (first := simulated.first_adapter(manifest)) is not None:
        first.put_on(model)
    adapter = adapter_vector(case, trained=True)
    return attack_adapter(model, adapter, manifest, members=members, others=others, tell=tell)
