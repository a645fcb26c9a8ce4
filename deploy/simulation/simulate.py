"""A whole federation in one process: real messages, real keys, real secure aggregation; only the network is missing."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...client.budget.agreement import join
from ...client.budget.reservations import Reservations
from ...client.node.app import make_app as make_client_app
from ...client.site.assembly import admit, sampler_of
from ...client.state.site_state import SiteState
from ...client.training.cohort import Cohort
from ...client.training.grad_samples import GradSampler
from ...client.training.update import SiteUpdate
from ...client.worker.worker import Worker
from ...client.worker_socket import AskWorker
from ...common.audit.named import named_audit, require_sound
from ...common.crypto.identity import Identity
from ...common.data.tokenisation import EvaluationSet
from ...common.ledger.replay import VerifiedLedger
from ...common.model.base_folder import vocabulary_size_of
from ...common.model.devices import PROCESSORS
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from ...common.schema import known
from ...common.sources.identifiers import Similar
from ...common.study.completion import complete_study
from ...common.study.first_adapter import FirstAdapter, first_adapter_of
from ...common.study.manifest import Manifest, new_manifest
from ...common.study.public_records import PublicRecords
from ...common.study.study import Site, Study
from ...server.rounds.app import Conversation
from ...server.rounds.app import make_app as make_server_app
from ...server.rounds.ledger_writer import LedgerWriter
from ...server.run.progress import Observer, PhaseProgress, Told, phase
from ...server.run.study_run import Attack, MakeAudit, StudyRun
from ..builtin.models import with_lasting_name
from .folder import Keys, Private, SimulationFolder
from .local_grid import SERVER_NODE, LocalGrid, local_context
from .outages import Dropout, Outages
from .settings import UNDESCRIBED
from .site_data import RecordSource, SiteData, read_all, tell_of_budget
from .sites import check_cohorts, check_newest, check_records_said, simulated_policy

# Carries the study's conversations to the workers of its sites, and their answers back; some messages meet an outage.
Network = Callable[[Iterable[Conversation], Mapping[str, AskWorker], Outages], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a simulation leaves: manifest, report, the trained adapter float32 [d], and its folder if it has one."""

    manifest: Manifest
    report: dict[str, Any]
    adapter: NDArray[np.float32]
    folder: Path | None


def in_process(conversations: Iterable[Conversation], workers: Mapping[str, AskWorker], outages: Outages) -> None:
    """A simulation's network: the study's Flower apps, one called by the other over the local grid."""
    client_app = make_client_app(lambda context: workers[str(context.node_config["site"])])
    grid = LocalGrid(dict.fromkeys(workers, client_app), outages.is_lost)
    server_app = make_server_app(lambda context: conversations, lambda grid_: grid.nodes)
    server_app(grid, local_context(SERVER_NODE, "server"))


def simulate(
    study: Study,
    cohorts: Mapping[str, RecordSource],
    *,
    evaluation: RecordSource,
    evaluation_source: str = UNDESCRIBED,
    opted_out: Mapping[str, Path] = {},
    similar_identifiers: Similar | None = None,
    output: Path | str | None = None,
    settings: Mapping[str, Any] = {},
    adapter_seed: int | None = None,
    dropouts: Sequence[Dropout] = (),
    observe: Observer = lambda event: None,
    network: Network = in_process,
    devices: Sequence[str] = (PROCESSORS,),
    audit: MakeAudit | None = None,
    attack: Callable[[Study, SiteData], Attack] | None = None,
) -> Result:
    """Run a study over the cohorts of its sites, and write its results to ``output`` if one is given.

    Args:
        study: what is to be run; what it leaves open is filled in.
        cohorts: each site's records: rows, or the file that has them.
        evaluation: records on which perplexity is measured. They must be public or synthetic, as the study says, since
            these figures are released without noise; where a study claims anything, none may share a patient or a text
            with the cohorts.
        evaluation_source: where these come from, in words for the report.
        opted_out: a site's file of patients who are left out.
        similar_identifiers: whether identifiers that differ in spelling alone are one patient's; None: refuse them.
        output: a new or empty folder; without one, nothing is kept.
        settings: kept for going on with a study that was interrupted (``resume``).
        adapter_seed: draws the frozen part of the adapter, which is public; so that runs to be compared share it.
        dropouts: sites that go away in the middle of a round.
        observe: is told what happens while it happens.
        network: carries what server and sites say.
        devices: where the model computes; of several, each computes a part of every step.
        audit: makes the audit that a report in ``output`` states, of a study that names none.
        attack: makes, of the study's records, what attacks the trained adapter; a report in ``output`` has its figures.

    Returns:
        Manifest, report and adapter. With ``output``, ``verify`` recomputes what the report claims.

    Raises:
        GrandRoundsError: says what was wrong and what to do; what was written is whole.

    >>> study = Study.model_validate({
    ...     "model": {"name": "tiny"},
    ...     "data": {"max_tokens": 16, "evaluation": "synthetic"},
    ...     "privacy": {"target_epsilon": 4.0},
    ...     "training": {"rounds": 1},
    ...     "sites": [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")],
    ... })
    >>> notes = [{"patient_id": number, "text": "no complaints"} for number in range(20)]
    >>> held_out = [{"patient_id": "nobody", "text": "well rested"}]
    >>> result = simulate(study, {"north": notes, "south": notes, "west": notes}, evaluation=held_out)
    >>> result.report["rounds"], round(result.report["epsilon"], 1), result.adapter.dtype.name
    (1, 4.0, 'float32')
    """
    check_records_said(study, evaluation_source)
    check_cohorts(study, cohorts, dropouts, opted_out)
    first, public, named = first_adapter_of(study), PublicRecords.of(study), named_audit(study)
    folder = None if output is None else SimulationFolder.create(Path(output))
    with nullcontext() if folder is None else folder.beginning():
        data = _read(
            study,
            cohorts,
            evaluation,
            folder=folder,
            public=public,
            opted_out=opted_out,
            similar=similar_identifiers,
            observe=observe,
        )
        attacking = None if attack is None else attack(study, data)
        with phase(observe, "calibration", "noise for every attempt of the schedule"):
            study = complete_study(with_lasting_name(study))
        seed = secrets.randbits(63) if adapter_seed is None else adapter_seed
        keys = Keys.generate(site.name for site in study.sites)
        prepared = _prepare(study, data, opted_out=opted_out, seed=seed, first=first, devices=devices, observe=observe)
        manifest = new_manifest(
            study,
            site_keys={site: identity.public_key for site, identity in keys.sites.items()},
            server_key=keys.server.public_key,
            model=prepared.model,
            model_sha256=prepared.model_sha256,
        )
        require_sound(named, study, package_sha256=manifest.package_sha256)
        if folder is not None:
            folder.save_first_adapter(first)
            folder.save_public_records(public)
            folder.save_audit(named)
            folder.begin(manifest, Private(keys=keys, seed=seed, settings=dict(settings)))
    return _run(
        manifest,
        keys,
        prepared,
        folder,
        evaluation_source=evaluation_source,
        dropouts=dropouts,
        observe=observe,
        network=network,
        audit=audit,
        attack=attacking,
    )


def resume(
    output: Path,
    cohorts: Mapping[str, RecordSource],
    *,
    evaluation: RecordSource,
    evaluation_source: str = UNDESCRIBED,
    opted_out: Mapping[str, Path] = {},
    similar_identifiers: Similar | None = None,
    dropouts: Sequence[Dropout] = (),
    observe: Observer = lambda event: None,
    devices: Sequence[str] = (PROCESSORS,),
    audit: MakeAudit | None = None,
    attack: Callable[[Study, SiteData], Attack] | None = None,
) -> Result:
    """Go on with the study in ``output`` from its last checkpoint, after its process was stopped or killed.

    The study is the manifest's; data files are given as to ``simulate``. Attempts that were begun are spent, and what
    sites paid stays paid. A study that is finished is left as it is.
    """
    folder = SimulationFolder.open(output)
    manifest, private = folder.manifest(), folder.private()
    check_cohorts(manifest.study, cohorts, dropouts, opted_out)
    data = _read(
        manifest.study,
        cohorts,
        evaluation,
        folder=folder,
        public=folder.public_records(manifest.study),
        opted_out=opted_out,
        similar=similar_identifiers,
        observe=observe,
    )
    attacking = None if attack is None else attack(manifest.study, data)
    prepared = _prepare(
        manifest.study,
        data,
        opted_out=opted_out,
        seed=private.seed,
        first=folder.first_adapter(manifest),
        devices=devices,
        observe=observe,
        model_sha256=manifest.model_sha256,
    )
    return _run(
        manifest,
        private.keys,
        prepared,
        folder,
        evaluation_source=evaluation_source,
        dropouts=dropouts,
        observe=observe,
        network=in_process,
        audit=audit,
        attack=attacking,
    )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What a simulation has in memory before its first attempt: the sites share one model and swap adapters."""

    base: Path
    model: LanguageModel
    model_sha256: str
    cohorts: Mapping[str, Cohort[Example]]
    public: Cohort[Example] | None
    opted_out: Mapping[str, Path]
    evaluation: EvaluationSet
    sampler: GradSampler


def _read(
    study: Study,
    cohorts: Mapping[str, RecordSource],
    evaluation: RecordSource,
    *,
    folder: SimulationFolder | None,
    public: PublicRecords | None,
    opted_out: Mapping[str, Path],
    similar: Similar | None,
    observe: Observer,
) -> SiteData:
    """The records, before anything is computed, so that a fault in a file costs no more."""
    tell_of_budget(study, cohorts)
    with phase(observe, "records", f"of {len(cohorts)} sites, and their tokens"):
        data = read_all(
            study,
            cohorts,
            evaluation,
            folder=None if folder is None else folder.prepared,
            public=public,
            opted_out=opted_out,
            similar=similar,
            progress=lambda done: observe(PhaseProgress(name="records", done=done, total=len(cohorts))),
        )
    for name, records in data.sites.items():
        for line in records.told():
            observe(Told(text=f"{name}: {line}"))
    return data


def _prepare(
    study: Study,
    data: SiteData,
    *,
    opted_out: Mapping[str, Path],
    seed: int,
    first: FirstAdapter | None,
    devices: Sequence[str],
    observe: Observer,
    model_sha256: str | None = None,
) -> _Prepared:
    with phase(observe, "model", study.model.name):
        # A is public: anyone may know the seed that drew it.
        model = LanguageModel.load(
            data.base,
            study.model.lora,
            seed=seed,
            precision=study.model.precision,
            device=devices[0],
            sha256=model_sha256,
            setting="the study's model.name",
        )
        if first is not None:
            first.put_on(model)
        evaluation_set = data.tokenisation.evaluation_set(data.evaluation, positions=model.positions)
    for records in data.sites.values():
        records.check_tokens(stated=vocabulary_size_of(data.base), size=model.vocabulary_size)
    cohorts = {
        site.name: Cohort.stated(
            data.sites[site.name].units(study), privacy_unit=study.privacy.unit, max_units=known(site.max_units)
        )
        for site in study.sites
    }
    with phase(observe, "independence", "no record may touch another's gradient"):
        sampler = sampler_of(study, model, devices=devices, base=data.base)
    return _Prepared(
        base=data.base,
        model=model,
        model_sha256=model.folder_sha256,
        cohorts=cohorts,
        public=None if data.public is None else Cohort(data.public),
        opted_out=opted_out,
        evaluation=evaluation_set,
        sampler=sampler,
    )


def _run(
    manifest: Manifest,
    keys: Keys,
    prepared: _Prepared,
    folder: SimulationFolder | None,
    *,
    evaluation_source: str,
    dropouts: Sequence[Dropout],
    observe: Observer,
    network: Network,
    audit: MakeAudit | None,
    attack: Attack | None,
) -> Result:
    states: dict[str, SiteState] = {}
    try:
        for site in keys.sites:
            states[site] = SiteState.in_memory() if folder is None else SiteState.open(folder.site_state(site))
        if folder is not None:
            folder.tidy()
        ledger = LedgerWriter(
            identity=keys.server,
            store=(lambda line: None) if folder is None else folder.append_entry,
            verified=VerifiedLedger() if folder is None else VerifiedLedger.of(folder.ledger_lines()),
        )
        check_newest(ledger, manifest, states)
        workers = {
            site.name: _worker(manifest, site, keys.sites[site.name], prepared, states[site.name]).handle
            for site in manifest.study.sites
        }
        run = StudyRun(
            manifest=manifest,
            ledger=ledger,
            folder=folder,
            model=prepared.model,
            base=prepared.base,
            evaluation=prepared.evaluation,
            evaluation_source=evaluation_source,
            observe=observe,
            make_audit=audit,
            attack=attack,
        )
        network(run.conversations(), workers, Outages.since(ledger.verified, dropouts))
    finally:
        for state in states.values():
            state.close()
    return Result(
        manifest=manifest,
        report=run.report,
        adapter=run.training.adapter,
        folder=None if folder is None else folder.path,
    )


def _worker(manifest: Manifest, site: Site, identity: Identity, prepared: _Prepared, state: SiteState) -> Worker:
    """A site's worker, once the site has checked the study, joined it and paid for it."""
    admit(manifest, name=site.name, identity=identity, model=prepared.model, model_sha256=prepared.model_sha256)
    policy = simulated_policy(manifest, site, opted_out=prepared.opted_out.get(site.name))
    join(manifest, policy, name=site.name, reservations=Reservations(state.database))
    update = SiteUpdate(
        manifest=manifest,
        name=site.name,
        cohort=prepared.cohorts[site.name],
        sampler=prepared.sampler,
        public=prepared.public,
    )
    return Worker(name=site.name, identity=identity, manifest=manifest, release=update, state=state)
