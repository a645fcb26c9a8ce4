"""One run: it trains in its way, has its ledger verified, and measures what the adapter is good for."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ....common.errors import OtherProgramError
from ....common.model.devices import PROCESSORS
from ....common.model.language_model import LanguageModel
from ....common.schema import known
from ....common.study.artefacts import MANIFEST
from ....common.study.study import Study
from ....common.system.code_pin import check_code_of
from ....common.system.package_hash import running_sha256
from ....common.version import __version__
from ....server.report.utility import published
from ....server.rounds.training import RoundOutcome
from ....server.run.progress import Event, Observer, PhaseStarted
from ...adapter.finished import FinishedAdapter
from ...simulation.config import RecordFiles, prepare_records
from ...simulation.simulate import Result, resume, simulate
from ...verify.claims import verify
from .central import Central
from .extraction import Extraction
from .levers import Job
from .row import Row, Subject, stated_of
from .ways import CENTRAL, Run

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a run computes, and the ``folder`` that a federation leaves its study in; ``tell`` hears of each round.

    Without ``asks`` no fact is asked of the adapters.
    """

    folder: Path
    asks: bool = True
    devices: Sequence[str] = (PROCESSORS,)
    tell: Tell = lambda line: None


def perform(job: Job, workplace: Workplace) -> Row:
    """The row of a job's run on the built-in patients, which are generated where they are not yet there.

    A federation goes on with what an earlier call left of it. Raises what training raises.
    """
    of_case, simulation = job.read()
    records = prepare_records(simulation, _observer(job.run.study(of_case), workplace.tell))
    return measured(job.run, of_case, records, workplace)


def measured(run: Run, of_case: Study, records: RecordFiles, workplace: Workplace) -> Row:
    """As ``perform``, on these ``records``."""
    started = time.monotonic()
    subject, stated = Subject.of(run, of_case), stated_of(of_case)  # of files as they are before it trains
    train = _central if run.way in CENTRAL else _federated
    return Row(
        **subject.model_dump(),
        **train(run, run.study(of_case), records, workplace),
        stated=stated,
        rounds=of_case.training.rounds,
        seconds=round(time.monotonic() - started, 1),
        version=__version__,
        program=running_sha256(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _observer(study: Study, tell: Tell) -> Observer:
    def observe(event: Event) -> None:
        match event:
            case PhaseStarted(name="data", detail=detail):
                tell(f"generating {detail}")
            case RoundOutcome(round=round_):
                tell(f"round {round_} of {study.training.rounds}")

    return observe


def _federated(run: Run, study: Study, records: RecordFiles, workplace: Workplace) -> dict[str, Any]:
    folder = workplace.folder
    inputs = {**records.inputs, "observe": _observer(study, workplace.tell), "devices": workplace.devices}
    result = _simulated(run, study, inputs, folder)
    adapter = FinishedAdapter.read(folder)
    model = adapter.on(adapter.base_folder())
    f1 = _asked(records, adapter.base_folder(), workplace)
    with model.module.disable_adapter():
        before = f1(model)
    return {
        "perplexity_before": result.report["perplexity_before"],
        "perplexity_after": result.report["perplexity_after"],
        "f1_before": before,
        "f1_after": f1(model),
        "noise_multiplier": result.manifest.study.privacy.noise_multiplier,
        "manifest": result.manifest.sha256,
        "ledger": result.report["ledger"]["head"],
        "verified": verify(folder, result.manifest.sha256).outcome.name,
    }


def _asked(records: RecordFiles, base: Path, workplace: Workplace) -> Callable[[LanguageModel], float | None]:
    """The F1 of a model on the held-out notes, or None."""
    return Extraction.of(records.evaluation, base).f1 if workplace.asks else lambda model: None


def _simulated(run: Run, study: Study, inputs: dict[str, Any], folder: Path) -> Result:
    """The federation, from its last checkpoint if this program began it."""
    if _is_begun(folder):
        return resume(folder, **inputs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return simulate(study, **inputs, output=folder, adapter_seed=run.case.seed)


def _is_begun(folder: Path) -> bool:
    """Whether this program began the study in a folder."""
    try:
        check_code_of((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, OtherProgramError):
        return False
    return True


def _central(run: Run, study: Study, records: RecordFiles, workplace: Workplace) -> dict[str, Any]:
    central = replace(
        Central.open(study, records, seed=run.case.seed, devices=workplace.devices),
        noise_over_claimed=known(run.noise_over_claimed(study)),
    )
    model, examples = central.model, central.evaluation.examples
    f1 = _asked(records, central.base, workplace)
    sites = [site.name for site in study.sites]
    before = model.perplexity(examples, model.get_adapter()).whole
    f1_before = f1(model)
    afters, f1_afters = [], list[float | None]()
    for trained_on in [sites] if run.way != "alone" else [[site] for site in sites]:
        adapter = central.train(trained_on, workplace.tell)
        afters.append(model.perplexity(examples, adapter).whole)
        f1_afters.append(f1(model))
    return {
        "perplexity_before": published(before),
        "perplexity_after": published(math.exp(fmean(map(math.log, afters)))),
        "f1_before": f1_before,
        "f1_after": None if f1_before is None else fmean(map(known, f1_afters)),
        "noise_multiplier": central.manifest.study.privacy.noise_multiplier,
        "manifest": None,
        "ledger": None,
        "verified": None,
    }
