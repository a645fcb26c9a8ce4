"""A whole federation in one process: real messages, real keys, real secure aggregation; only the network is missing."""

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from .. import __version__
from ..client.admission import admit
from ..client.agreement import join
from ..client.app import make_app as make_client_app
from ..client.budget import Budget
from ..client.cohort import Cohort
from ..client.data import Example, Tokenisation
from ..client.grad_samples import GradSampler
from ..client.independence import independent_batch_size
from ..client.opt_outs import without_opted_out
from ..client.policy import AllowedModel, DataPolicy, Policy, StudyPolicy
from ..client.records import Record, parse_records, read_records
from ..client.reservations import Reservations
from ..client.update import SiteUpdate
from ..client.worker import Worker
from ..common import entries
from ..common.audit import Audit
from ..common.countersignature import Countersignature
from ..common.errors import StorageError, StudyError
from ..common.identity import Envelope, sha256
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..common.messages import FIELD, RECORD, Begin, Ciphertexts, Consistencies, Survivors
from ..common.model_folder import model_folder_sha256
from ..common.study import Site, Study, complete_study, validated
from ..server.app import Conversation
from ..server.app import make_app as make_server_app
from ..server.checkpoint import Checkpoint
from ..server.closing import Closing
from ..server.ledger import LedgerWriter
from ..server.report import Declared, build_report, render_json
from ..server.training import Training, accountant_of
from .base_model import base_model_folder, published_name
from .local_grid import SERVER_NODE, LocalGrid, local_context
from .progress import Observer, StudyReady, phase
from .study_folder import REPORT, Keys, Private, StudyFolder

# A file, or rows as such a file holds them.
RecordSource = str | Path | Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """A site that goes away in the middle of a round's first attempt, after its shares, and is back for the next."""

    site: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where evaluation records come from, in words for the report; ``counted``: nominal units were counted."""

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
    opted_out: Mapping[str, Path] = {},
    output: Path | None = None,
    settings: Mapping[str, Any] = {},
    dropouts: Sequence[Dropout] = (),
    observe: Observer = lambda event: None,
) -> Result:
    """Run a study over the cohorts of its sites, and write its results to ``output`` if one is given.

    ``cohorts`` gives each site's records (rows, or the file that has them); ``evaluation`` must be public or synthetic,
    since its figures are released without noise. ``opted_out`` names a site's file of patients who are left out.
    ``settings`` are kept for who goes on with a study that was interrupted (``resume``). Raises a GrandRoundsError that
    says what to do; what was written is whole.

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
    _check_sites(study, cohorts, dropouts, opted_out)
    folder = None if output is None else StudyFolder.create(output)
    with phase(observe, "calibration", "noise for every attempt of the schedule"):
        study = complete_study(study)
    seed = secrets.randbits(63)
    keys = Keys.generate(site.name for site in study.sites)
    prepared = _prepare(study, cohorts, evaluation, opted_out=opted_out, seed=seed, observe=observe)
    manifest = _manifest(study, keys, prepared)
    if folder is not None:
        folder.begin(manifest, Private(keys=keys, seed=seed, settings=dict(settings)))
    return _run(manifest, keys, prepared, folder, sources=sources, dropouts=dropouts, observe=observe)


def resume(
    output: Path,
    cohorts: Mapping[str, RecordSource],
    *,
    evaluation: RecordSource,
    sources: Sources = Sources(),
    opted_out: Mapping[str, Path] = {},
    dropouts: Sequence[Dropout] = (),
    observe: Observer = lambda event: None,
) -> Result:
    """Go on with the study in ``output`` from its last checkpoint, after its process was stopped or killed.

    The study is the manifest's; data files are given as to ``simulate``. Attempts that were begun are spent, and what
    sites paid stays paid. A study that is finished is left as it is.
    """
    folder = StudyFolder.open(output)
    manifest, private = folder.manifest(), folder.private()
    _check_sites(manifest.study, cohorts, dropouts, opted_out)
    prepared = _prepare(manifest.study, cohorts, evaluation, opted_out=opted_out, seed=private.seed, observe=observe)
    return _run(manifest, private.keys, prepared, folder, sources=sources, dropouts=dropouts, observe=observe)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What a simulation has in memory before its first attempt: the sites share one model and swap adapters."""

    base: Path
    model: LanguageModel
    model_sha256: str
    cohorts: Mapping[str, Cohort[Example]]
    opted_out: Mapping[str, Path]
    evaluation: Sequence[Example]
    sampler: GradSampler


def _prepare(
    study: Study,
    cohorts: Mapping[str, RecordSource],
    evaluation: RecordSource,
    *,
    opted_out: Mapping[str, Path],
    seed: int,
    observe: Observer,
) -> _Prepared:
    with phase(observe, "model", study.model.name):
        base = base_model_folder(study.model.name)
        # A is public: anyone may know the seed that drew it.
        model = LanguageModel.load(base, study.model.lora, seed=seed)
        model_sha256 = model_folder_sha256(base)
    with phase(observe, "records", f"{len(cohorts)} sites"):
        tokenisation = Tokenisation.load(str(base), max_tokens=study.data.max_tokens)
        site_cohorts = {
            site: _cohort(study, tokenisation, _records(site, source, opted_out.get(site)))
            for site, source in cohorts.items()
        }
        evaluation_set = tokenisation.examples(_records("evaluation", evaluation))
    with phase(observe, "independence", "no record may touch another's gradient"):
        sampler = _sampler(study, model)
    return _Prepared(
        base=base,
        model=model,
        model_sha256=model_sha256,
        cohorts=site_cohorts,
        opted_out=opted_out,
        evaluation=evaluation_set,
        sampler=sampler,
    )


def _manifest(study: Study, keys: Keys, prepared: _Prepared) -> Manifest:
    return validated(
        Manifest,
        {
            "study_id": secrets.token_hex(32),
            "study": study,
            "site_keys": {site: identity.public_key for site, identity in keys.sites.items()},
            "server_key": keys.server.public_key,
            "dimension": prepared.model.layout.dimension,
            "model_sha256": prepared.model_sha256,
            "frozen_adapter_sha256": prepared.model.frozen_adapter_sha256,
            "package_version": __version__,
        },
    )


def _run(
    manifest: Manifest,
    keys: Keys,
    prepared: _Prepared,
    folder: StudyFolder | None,
    *,
    sources: Sources,
    dropouts: Sequence[Dropout],
    observe: Observer,
) -> Result:
    model = prepared.model
    budgets: dict[str, Budget] = {}
    try:
        for site in keys.sites:
            budgets[site] = Budget.in_memory() if folder is None else Budget.open(folder.site_state(site))
        if folder is not None:
            folder.tidy()
        ledger = _agreed_ledger(manifest, keys, prepared, budgets, folder)
        workers = {
            site: Worker(
                name=site,
                identity=identity,
                manifest=manifest,
                release=SiteUpdate(
                    manifest=manifest, name=site, cohort=prepared.cohorts[site], sampler=prepared.sampler
                ),
                budget=budgets[site],
            )
            for site, identity in keys.sites.items()
        }
        checkpoint = None if folder is None else folder.checkpoint(manifest)
        if checkpoint is None:
            adapter = model.get_adapter()
            with phase(observe, "evaluation", "the base model on held-out records"):
                perplexity = model.perplexity(prepared.evaluation, adapter)
            checkpoint = Checkpoint.initial(study=manifest.study_id, adapter=adapter, perplexity=perplexity)
            if folder is not None:
                folder.save_checkpoint(checkpoint)
        claimed = accountant_of(manifest, ()).epsilon_of_schedule
        observe(
            StudyReady(
                manifest=manifest,
                epsilon=None if claimed is None else claimed.epsilon,
                perplexity_before=float(checkpoint.perplexities[0]),
            )
        )
        training = Training(
            manifest=manifest,
            identity=keys.server,
            ledger=ledger,
            checkpoint=checkpoint,
            evaluate=lambda vector: model.perplexity(prepared.evaluation, vector),
            save=(lambda checkpoint: None) if folder is None else folder.save_checkpoint,
            observe=observe,
        )
        ending = _Ending(training, prepared, folder, sources, observe)
        _drive(ending.conversations(), workers, Outages(dropouts, _rounds_of(ledger)))
    finally:
        for budget in budgets.values():
            budget.close()
    return Result(
        manifest=manifest,
        report=ending.report,
        adapter=training.adapter,
        folder=None if folder is None else folder.path,
    )


def _agreed_ledger(
    manifest: Manifest,
    keys: Keys,
    prepared: _Prepared,
    budgets: Mapping[str, Budget],
    folder: StudyFolder | None,
) -> LedgerWriter:
    """The study's ledger with the signatures of all sites: each has checked the study and paid for it before."""
    ledger = LedgerWriter(
        identity=keys.server,
        store=(lambda line: None) if folder is None else folder.append_entry,
        audit=Audit() if folder is None else Audit.of(folder.ledger_lines()),
    )
    _check_newest(ledger, manifest, budgets)
    if not ledger.audit.manifests:
        ledger.append(entries.StudyEntry(manifest=manifest))
    described = {site.name: site for site in manifest.study.sites}
    for site, identity in keys.sites.items():
        admit(manifest, name=site, identity=identity, model=prepared.model, model_sha256=prepared.model_sha256)
        policy = _policy(manifest, described[site], opted_out=prepared.opted_out.get(site))
        join(manifest, policy, name=site, reservations=Reservations(budgets[site].database))
        if site not in ledger.audit.countersigned:
            signature = Countersignature.of(identity, site=site, manifest=manifest.sha256)
            ledger.append(entries.CountersignatureEntry(countersignature=signature))
    return ledger


def _check_newest(ledger: LedgerWriter, manifest: Manifest, budgets: Mapping[str, Budget]) -> None:
    """Raises StorageError unless the ledger is the manifest's, and has whatever its sites have of it.

    They would refuse any other, and each attempt that they refuse is spent.
    """
    lines = ledger.lines()
    if ledger.audit.manifests not in ([], [manifest]):
        raise _put_back("the ledger is that of another manifest")
    for site, budget in budgets.items():
        held = budget.ledger(manifest.study_id)
        if lines[: len(held)] != held:
            raise _put_back(f"the ledger lacks what {site} has of it")


def _put_back(what: str) -> StorageError:
    return StorageError(
        what,
        why="no site would follow it, and the attempts that they refuse would be spent",
        fix="put back the newest of the study's files; nothing was changed",
    )


def _policy(manifest: Manifest, site: Site, *, opted_out: Path | None) -> Policy:
    """A simulated site's policy: this one study, on records that this one study may use up.

    All keys count as compared, because one process made them.
    """
    privacy, delta = manifest.study.privacy, manifest.delta
    # Without noise there is no target, and nothing that these would limit.
    epsilon = privacy.target_epsilon or 1.0
    return Policy(
        study=StudyPolicy(
            largest_epsilon=epsilon,
            largest_delta=delta,
            trust=(privacy.trust,),
            smallest_honest_shares=2,
            models=(AllowedModel(name=manifest.study.model.name, sha256=manifest.model_sha256),),
            verified_peers=(manifest.server_key, *manifest.site_keys.values()),
        ),
        data=DataPolicy(
            unit=privacy.unit,
            epsilon=epsilon,
            delta=delta,
            synthetic_data_only=not privacy.noise or site.sensitivity == "synthetic",
            opted_out=opted_out,
        ),
    )


@dataclass
class _Ending:
    """A study's training, and what is made of it: the adapter, the report, and every site's signature on both."""

    training: Training
    prepared: _Prepared
    folder: StudyFolder | None
    sources: Sources
    observe: Observer
    report: dict[str, Any] = field(init=False)

    def conversations(self) -> Iterator[Conversation]:
        """What the server has to say, in order."""
        rounds = self.training.manifest.study.training.rounds
        with phase(self.observe, "training", f"{rounds} rounds"):
            yield self.training
        with phase(self.observe, "report", "claims, adapter and model card"):
            self.report = self._report()
            files = {REPORT: sha256(render_json(self.report))}
            closed = self.training.ledger.audit.closed
            # What was closed stays as it is; only what was lost of it since is written again.
            if self.folder is not None and not (closed and self.folder.holds(closed.files)):
                self.prepared.model.set_adapter(self.training.adapter)
                files = self.folder.save_results(self.report, self.prepared.model, base_model=str(self.prepared.base))
        with phase(self.observe, "closing", "every site signs the ledger"):
            yield Closing(
                identity=self.training.identity,
                ledger=self.training.ledger,
                report=render_json(self.report),
                files=files,
                held=self.training.held,
            )

    def _report(self) -> dict[str, Any]:
        training = self.training
        before, *after = (_finite(perplexity) for perplexity in training.checkpoint.perplexities)
        perplexities = dict(enumerate(after, start=1))
        if training.exhausted is not None:
            perplexities[training.exhausted.round] = _finite(training.exhausted.perplexity)
        declared = Declared(
            perplexity_before=before,
            perplexities=perplexities,
            base_model=published_name(training.manifest.study.model.name),
            evaluation=self.sources.evaluation,
            counted=self.sources.counted,
            setting="simulation",
        )
        return build_report(training.ledger.audit, declared)


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return float(value) if math.isfinite(value) else None


def _rounds_of(ledger: LedgerWriter) -> dict[int, int]:
    return {record.attempt: record.round for record in ledger.audit.attempts}


@dataclass
class Outages:
    """Says which messages meet a site that is away, as the simulation's network asks."""

    dropouts: Sequence[Dropout]
    # The round of every attempt that was begun, also before this process.
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


def _drive(conversations: Iterable[Conversation], workers: Mapping[str, Worker], outages: Outages) -> None:
    """Carry the study's conversations between its Flower apps over the local grid."""
    client_app = make_client_app(lambda context: workers[str(context.node_config["site"])].handle)
    grid = LocalGrid(dict.fromkeys(workers, client_app), outages.is_lost)
    server_app = make_server_app(lambda context: conversations, lambda grid_: grid.nodes)
    server_app(grid, local_context(SERVER_NODE, "server"))


def _sampler(study: Study, model: LanguageModel) -> GradSampler:
    """Gradients in the study's physical batches, or one record a batch where records would touch one another."""
    max_tokens = study.data.max_tokens
    batch_size = independent_batch_size(model, batch_size=study.training.physical_batch, max_tokens=max_tokens)
    return GradSampler(model, batch_size=batch_size, max_tokens=max_tokens)


def _records(name: str, source: RecordSource, opted_out: Path | None = None) -> list[Record]:
    records = read_records(Path(source)) if isinstance(source, str | Path) else parse_records(name, source)
    return records if opted_out is None else without_opted_out(records, opted_out)


def _cohort(study: Study, tokenisation: Tokenisation, records: Sequence[Record]) -> Cohort[Example]:
    patients = [record.patient_id for record in records]
    examples = tokenisation.examples(records)
    return Cohort.grouped(zip(patients, examples, strict=True), privacy_unit=study.privacy.unit)


def _check_sites(
    study: Study, cohorts: Mapping[str, object], dropouts: Sequence[Dropout], opted_out: Mapping[str, object]
) -> None:
    names = {site.name for site in study.sites}
    if set(cohorts) != names:
        raise StudyError(
            f"data for {sorted(cohorts)} but sites {sorted(names)}",
            why="every site trains on its own records and no others exist",
            fix="give one data file for each site of the study",
        )
    if not set(opted_out) <= names:
        raise StudyError(
            f"opt-outs for {sorted(set(opted_out) - names)} but sites {sorted(names)}",
            why="whoever opted out would be read all the same, at the site that was meant",
            fix="name the site as the study does",
        )
    for dropout in dropouts:
        if dropout.site not in names or not 1 <= dropout.round <= study.training.rounds:
            raise StudyError(
                f"there is no {dropout.site} in round {dropout.round} to drop out",
                why="the simulation would not show what was asked for",
                fix=f"name one of {', '.join(sorted(names))} and a round from 1 to {study.training.rounds}",
            )
