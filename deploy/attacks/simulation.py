"""Attacks on the adapter of a simulation, with the records that it was trained on and those for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...client.site.site_records import SiteRecords
from ...common.audit.attack_scores import AttackEvidence, PatientScores
from ...common.data.preparation import Preparation
from ...common.errors import StudyError
from ...common.model.adapter import Vector, vector_sha256
from ...common.model.language_model import LanguageModel
from ...common.sources.source import DataSource
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ...common.system.package_hash import running_sha256
from ..adapter.finished import FinishedAdapter
from ..simulation.config import prepare_records, read_simulation
from ..simulation.folder import SimulationFolder
from ..simulation.site_data import SiteData, read_all
from ..verify.adapter_claims import adapter_vector
from ..verify.case import Case
from ..verify.evidence import read_evidence
from .attack import attacked
from .patients import some_patients
from .scores import Patient


@dataclass(frozen=True, kw_only=True)
class SimulatedAttack:
    """Members are the patients of all sites, the others those of the evaluation set; ``tell`` hears how far it is."""

    members: Sequence[Patient]
    others: Sequence[Patient]
    tell: Callable[[str], None]

    @classmethod
    def of(cls, study: Study, data: SiteData, evaluation: Path, *, tell: Callable[[str], None]) -> Self:
        """Some of the patients. Raises DataError where they are too few, or cannot be read."""
        preparation = Preparation(
            tokenisation=data.tokenisation,
            max_tokens=study.data.max_tokens,
            overlap=study.data.overlap,
            similar="different",
        )
        evaluated = SiteRecords.of(preparation.of_source(DataSource.of(evaluation)), None)
        return cls(
            members=some_patients(data.sites.values(), study, who="were trained on"),
            others=some_patients([evaluated], study, who="are in the evaluation set"),
            tell=tell,
        )

    def evidence(self, model: LanguageModel, adapter: Vector, manifest: Manifest) -> AttackEvidence:
        """What they see of an ``adapter``, float32 [d], of a study of this ``model``. Raises ModelError."""
        members, others = attacked(model, adapter, manifest, members=self.members, others=self.others, tell=self.tell)
        return AttackEvidence(
            package_sha256=running_sha256(),
            manifest_sha256=manifest.sha256,
            adapter_sha256=vector_sha256(adapter),
            members=PatientScores.of(members),
            others=PatientScores.of(others),
        )


def attack_simulation(folder: Path, *, tell: Callable[[str], None]) -> tuple[Manifest, AttackEvidence]:
    """What attacks see of the adapter in a simulation's folder, which is compared with its study before.

    ``tell`` hears how far it is. Raises StorageError, StudyError, DataError and ModelError.
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
    attack = SimulatedAttack.of(study, data, records.evaluation, tell=tell)
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
    return manifest, attack.evidence(model, adapter_vector(case, trained=True), manifest)
