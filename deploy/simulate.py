"""A whole federation in one process: real messages, real keys, real secure aggregation; only the network is missing."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from .. import __version__
from ..client.admission import admit
from ..client.app import make_app as make_client_app
from ..client.budget import Budget
from ..client.cohort import Cohort
from ..client.data import Example, Tokenisation
from ..client.grad_samples import GradSampler
from ..client.independence import independent_batch_size
from ..client.records import Record, parse_records, read_records
from ..client.update import SiteUpdate
from ..client.worker import Worker
from ..common.errors import StudyError
from ..common.identity import Envelope, Identity
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..common.messages import FIELD, RECORD, Begin, Ciphertexts, Consistencies, Survivors
from ..common.model_folder import model_folder_sha256
from ..common.study import Study, complete_study, validated
from ..server.accountant import CentralAccountant
from ..server.app import make_app as make_server_app
from ..server.report import build_report
from ..server.training import Training
from .base_model import base_model_folder, published_name
from .local_grid import SERVER_NODE, LocalGrid, local_context
from .progress import Observer, StudyReady, phase
from .study_folder import StudyFolder

# A file, or rows as such a file holds them.
RecordSource = str | Path | Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """A site that goes away in the middle of a round's first attempt, after its shares, and is back for the next."""

    site: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where records come from, in words for the report; ``counted``: nominal units were counted in them."""

    cohorts: str = "records given to the simulation"
    evaluation: str = "records given to the simulation"
    counted: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a simulation leaves: manifest, report, the trained adapter float32 [d], and its folder if it has one."""

    manifest: Manifest
    report: dict[str, Any]
    adapter: NDArray[np.float32]
    folder: Path | None


def simulate(
    study: Study,
    cohorts: Mapping[str, RecordSource],
    *,
    evaluation: RecordSource,
    sources: Sources = Sources(),
    output: Path | None = None,
    dropouts: Sequence[Dropout] = (),
    observe: Observer = lambda event: None,
) -> Result:
    """Run a study over the cohorts of its sites, and write its results to ``output`` if one is given.

    ``cohorts`` gives each site's records (rows, or the file that has them); ``evaluation`` must be public or synthetic,
    since its figures are released without noise. Raises a GrandRoundsError that says what to do; what was written is
    whole.

    >>> study = Study.model_validate({
    ...     "model": {"name": "tiny"},
    ...     "data": {"max_tokens": 16},
    ...     "privacy": {"target_epsilon": 4.0},
    ...     "training": {"rounds": 1},
    ...     "sites": [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")],
    ... })
    >>> notes = [{"patient_id": number, "text": "no complaints"} for number in range(20)]
    >>> result = simulate(study, {"north": notes, "south": notes, "west": notes}, evaluation=notes)
    >>> round(result.report["epsilon"], 1)
    4.0
    """
    _check_sites(study, cohorts, dropouts)
    folder = None if output is None else StudyFolder.create(output)
    with phase(observe, "calibration", "noise for every attempt of the schedule"):
        study = complete_study(study)
    with phase(observe, "model", study.model.name):
        base = base_model_folder(study.model.name)
        # A is public: anyone may know the seed that drew it.
        model = LanguageModel.load(base, study.model.lora, seed=secrets.randbits(63))
        model_sha256 = model_folder_sha256(base)
    with phase(observe, "records", f"{len(cohorts)} sites"):
        tokenisation = Tokenisation.load(str(base), max_tokens=study.data.max_tokens)
        site_cohorts = {site: _cohort(study, tokenisation, _records(site, source)) for site, source in cohorts.items()}
        evaluation_set = tokenisation.examples(_records("evaluation", evaluation))
    with phase(observe, "independence", "no record may touch another's gradient"):
        sampler = _sampler(study, model)
    identities = {site.name: Identity.generate() for site in study.sites}
    server = Identity.generate()
    manifest = validated(
        Manifest,
        {
            "study_id": secrets.token_hex(32),
            "study": study,
            "site_keys": {site: identity.public_key for site, identity in identities.items()},
            "server_key": server.public_key,
            "dimension": model.layout.dimension,
            "model_sha256": model_sha256,
            "frozen_adapter_sha256": model.frozen_adapter_sha256,
            "package_version": __version__,
        },
    )
    if folder is not None:
        folder.save_manifest(manifest)
    workers = {}
    for site, identity in identities.items():
        admit(manifest, name=site, identity=identity, model=model, model_sha256=model_sha256)
        update = SiteUpdate(manifest=manifest, name=site, cohort=site_cohorts[site], sampler=sampler)
        budget = Budget.in_memory() if folder is None else Budget.open(folder.site_state(site))
        workers[site] = Worker(name=site, identity=identity, manifest=manifest, release=update, budget=budget)
    adapter = model.get_adapter()
    with phase(observe, "evaluation", "the base model on held-out records"):
        perplexity_before = model.perplexity(evaluation_set, adapter)
    accountant = CentralAccountant(schedule=manifest.schedule, max_attempts=manifest.max_attempts, delta=manifest.delta)
    claimed = accountant.epsilon_of_schedule
    observe(
        StudyReady(
            manifest=manifest, epsilon=None if claimed is None else claimed.epsilon, perplexity_before=perplexity_before
        )
    )
    training = Training(
        manifest=manifest,
        identity=server,
        accountant=accountant,
        adapter=adapter,
        evaluate=lambda vector: model.perplexity(evaluation_set, vector),
        save=(lambda checkpoint: None) if folder is None else folder.save_checkpoint,
        observe=observe,
    )
    with phase(observe, "training", f"{study.training.rounds} rounds"):
        _run(training, workers, dropouts)
    with phase(observe, "report", "claims, adapter and model card"):
        report = build_report(
            manifest=manifest,
            rounds=training.rounds,
            attempts=accountant.attempts_committed,
            exhausted=training.exhausted,
            perplexity_before=perplexity_before,
            base_model=published_name(study.model.name),
            evaluation=sources.evaluation,
            data_sources=dict.fromkeys(cohorts, sources.cohorts),
            counted=sources.counted,
            setting="simulation",
        )
        if folder is not None:
            model.set_adapter(training.adapter)
            folder.save_results(report, model, base_model=str(base))
    return Result(manifest=manifest, report=report, adapter=training.adapter, folder=output)


@dataclass
class Outages:
    """Says which messages meet a site that is away, as the simulation's network asks."""

    dropouts: Sequence[Dropout]
    _rounds: dict[int, int] = field(default_factory=dict)

    def is_lost(self, site: str, message: Message) -> bool:
        """Whether ``message`` belongs to the later exchanges of an attempt in which ``site`` drops out."""
        content = message.content.config_records[RECORD][FIELD]
        assert isinstance(content, bytes)  # noqa: S101 (server/app.py sends nothing else)
        envelope = Envelope.parse(content)
        if envelope.exchange == Begin.exchange:
            self._rounds[envelope.attempt] = Begin.of(envelope).round
            return False
        round_ = self._rounds[envelope.attempt]
        first = min(attempt for attempt, number in self._rounds.items() if number == round_)
        late = envelope.exchange in (Ciphertexts.exchange, Survivors.exchange, Consistencies.exchange)
        return late and envelope.attempt == first and Dropout(site=site, round=round_) in self.dropouts


def _run(training: Training, workers: Mapping[str, Worker], dropouts: Sequence[Dropout]) -> None:
    """Drive the study's Flower apps over the local grid until its training is finished."""
    client_app = make_client_app(lambda context: workers[str(context.node_config["site"])].handle)
    grid = LocalGrid(dict.fromkeys(workers, client_app), Outages(dropouts).is_lost)
    server_app = make_server_app(lambda context: training, lambda grid_: grid.nodes)
    try:
        server_app(grid, local_context(SERVER_NODE, "server"))
    finally:
        for worker in workers.values():
            worker.close()


def _sampler(study: Study, model: LanguageModel) -> GradSampler:
    """Gradients in the study's physical batches, or one record a batch where records would touch one another."""
    max_tokens = study.data.max_tokens
    batch_size = independent_batch_size(model, batch_size=study.training.physical_batch, max_tokens=max_tokens)
    return GradSampler(model, batch_size=batch_size, max_tokens=max_tokens)


def _records(name: str, source: RecordSource) -> list[Record]:
    return read_records(Path(source)) if isinstance(source, str | Path) else parse_records(name, source)


def _cohort(study: Study, tokenisation: Tokenisation, records: Sequence[Record]) -> Cohort[Example]:
    patients = [record.patient_id for record in records]
    examples = tokenisation.examples(records)
    return Cohort.grouped(zip(patients, examples, strict=True), privacy_unit=study.privacy.unit)


def _check_sites(study: Study, cohorts: Mapping[str, object], dropouts: Sequence[Dropout]) -> None:
    names = {site.name for site in study.sites}
    if set(cohorts) != names:
        raise StudyError(
            f"data for {sorted(cohorts)} but sites {sorted(names)}",
            why="every site trains on its own records and no others exist",
            fix="give one data file for each site of the study",
        )
    for dropout in dropouts:
        if dropout.site not in names or not 1 <= dropout.round <= study.training.rounds:
            raise StudyError(
                f"there is no {dropout.site} in round {dropout.round} to drop out",
                why="the simulation would not show what was asked for",
                fix=f"name one of {', '.join(sorted(names))} and a round from 1 to {study.training.rounds}",
            )
