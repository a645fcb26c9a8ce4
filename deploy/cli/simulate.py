"""``grandrounds simulate``: a whole federation in one process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    MODEL,
    PRIVACY,
    TRAINING,
    ConfigOption,
    CorruptSitesOption,
    DeltaOption,
    DeviceOption,
    LocalStepsOption,
    MaxAttemptsOption,
    MaxTokensOption,
    ModelOption,
    PhysicalBatchOption,
    PrivacyUnitOption,
    RankOption,
    RecordsPerUnitOption,
    SitesPerPatientOption,
    StudyTrustOption,
    TargetEpsilonOption,
    TargetModulesOption,
    ThresholdOption,
    listed,
    named_numbers,
)

DEFAULT_OUTPUT = Path("grandrounds-demo")


class EvaluationKind(StrEnum):
    """Where the evaluation records come from; their figures are released without noise."""

    SYNTHETIC = "synthetic"
    PUBLIC = "public"


def simulate(
    config: ConfigOption = None,
    sites: Annotated[int | None, typer.Option(help="Built-in hospitals (default 5).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Steps of the shared adapter (default 4).")] = None,
    dropout: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE@ROUND",
            help="A site that goes away in the middle of a round (default hospital-2@3 without --data); or 'none'.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results (default ./grandrounds-demo).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --output, from its last checkpoint.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A site and its records (.jsonl .csv .parquet).", rich_help_panel=MODEL),
    ] = None,
    nominal_units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=N",
            help="A site's number of units, public or coarse (default: counted, to one digit).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Records to evaluate on: public or synthetic only.", rich_help_panel=MODEL)
    ] = None,
    evaluation_kind: Annotated[
        EvaluationKind | None, typer.Option(help="Which of the two they are.", rich_help_panel=MODEL)
    ] = None,
    model: ModelOption = None,
    target_modules: TargetModulesOption = None,
    rank: RankOption = None,
    max_tokens: MaxTokensOption = None,
    records_per_unit: RecordsPerUnitOption = None,
    target_epsilon: TargetEpsilonOption = None,
    delta: DeltaOption = None,
    trust: StudyTrustOption = None,
    privacy_unit: PrivacyUnitOption = None,
    sites_per_patient: SitesPerPatientOption = None,
    corrupt_sites: CorruptSitesOption = None,
    threshold: ThresholdOption = None,
    clipping_norm: Annotated[
        float | None,
        typer.Option(help="Largest norm of a unit's gradient (default 0.5).", rich_help_panel=PRIVACY),
    ] = None,
    no_privacy: Annotated[
        bool,
        typer.Option("--no-privacy", help="No noise, for comparison; makes no claim.", rich_help_panel=PRIVACY),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(help="Units in a step on average, over all sites (default 24).", rich_help_panel=TRAINING),
    ] = None,
    physical_batch: PhysicalBatchOption = None,
    device: DeviceOption = None,
    max_attempts: MaxAttemptsOption = None,
    local_steps: LocalStepsOption = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the server's optimiser (default 0.05).", rich_help_panel=TRAINING)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the display.")] = False,
) -> None:
    """Simulate a federation: hospitals, server, secure aggregation and privacy, on this machine.

    Without --data it runs on five built-in synthetic hospitals and SmolLM2-135M-Instruct.
    """
    options: dict[str, dict[str, Any]] = {
        "model": {"name": model, "target_modules": listed(target_modules), "rank": rank},
        "data": {
            "max_tokens": max_tokens,
            "records_per_unit": records_per_unit,
            "evaluation": evaluation_kind and evaluation_kind.value,
        },
        "privacy": {
            "unit": privacy_unit and privacy_unit.value,
            "trust": trust and trust.value,
            "noise": False if no_privacy else None,
            "target_epsilon": target_epsilon,
            "delta": delta,
            "clipping_norm": clipping_norm,
            "corrupt_sites": corrupt_sites,
            "sites_per_patient": sites_per_patient,
        },
        "training": {
            "rounds": rounds,
            "max_attempts": max_attempts,
            "local_steps": local_steps,
            "learning_rate": learning_rate,
            "physical_batch": physical_batch,
        },
        "secagg": {"threshold": threshold},
        "simulation": {
            "data": _named_files(data or []),
            "nominal_units": named_numbers(nominal_units or []),
            "evaluation": evaluation,
            "builtin_sites": sites,
            "units_per_step": batch,
            "dropouts": dropout,
            "device": device,
        },
    }
    from ..simulation.config import chosen_dropouts, prepare_records, read_simulation, read_tables, units_are_counted

    tables = read_tables(config, options)
    if resume:
        folder = output or DEFAULT_OUTPUT
        tables = _settings_of(folder, given=tables)
    else:
        folder = output or _free_folder(DEFAULT_OUTPUT)
    study, simulation = read_simulation(tables)
    counted = units_are_counted(tables, simulation)
    from ...common.model.devices import open_device

    open_device(simulation.device)  # which is told before data are made for minutes
    from ..simulation.simulate import resume as resume_simulation
    from ..simulation.simulate import simulate as run_simulation
    from ..views.display import Display

    with Display(quiet=as_json) as display, _told_when_stopped(folder):
        records = prepare_records(simulation, display.observe, counted=counted)
        inputs: dict[str, Any] = {
            **records.inputs,
            "dropouts": chosen_dropouts(study, simulation),
            "device": simulation.device,
            "observe": display.observe,
        }
        if resume:
            result = resume_simulation(folder, **inputs)
        else:
            settings = json.loads(json.dumps(tables, default=_absolute))
            result = run_simulation(study, output=folder, settings=settings, **inputs)
    if as_json:
        typer.echo(json.dumps(result.report))
    else:
        display.summary(result.report, folder)


@contextmanager
def _told_when_stopped(folder: Path) -> Iterator[None]:
    from ...common.errors import StoppedError
    from ...common.study.artefacts import MANIFEST

    try:
        yield
    except KeyboardInterrupt:
        if not (folder / MANIFEST).exists():
            raise StoppedError(
                "stopped before the study was begun",
                why="nothing was trained, and nothing was spent",
                fix="start it again, in a new folder",
            ) from None
        raise StoppedError(
            f"stopped; what is in {folder} is whole, up to the last round that was closed",
            why="an unfinished study has no report and no adapter",
            fix=f"go on with it: grandrounds simulate --resume --output {folder}",
        ) from None


def _settings_of(folder: Path, *, given: dict[str, Any]) -> dict[str, Any]:
    """What the study in ``folder`` was begun with; raises StudyError if anything else was ``given`` now."""
    from ...common.errors import StudyError
    from ..simulation.folder import SimulationFolder

    if given:
        raise StudyError(
            f"--resume, and settings of {', '.join(given)}",
            why="a study that was begun keeps the parameters that its sites signed",
            fix="give --resume and --output alone, or start another study",
        )
    return SimulationFolder.open(folder).private().settings


def _absolute(path: object) -> str:
    """A path as it is found from another folder too."""
    if not isinstance(path, Path):
        raise TypeError(type(path).__name__)
    return str(path.absolute())


def _named_files(texts: list[str]) -> dict[str, Path]:
    """``NAME=FILE`` options as a mapping; raises StudyError."""
    from ...common.errors import StudyError

    files: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not (name and file) or name in files:
            raise StudyError(
                f"--data {text} is not NAME=FILE with a name of its own",
                why="each site has one file of its own records",
                fix="write for example --data north=north.jsonl",
            )
        files[name] = Path(file)
    return files


def _free_folder(wanted: Path) -> Path:
    """``wanted``, or with the next number behind it if that is taken: results are never overwritten."""
    taken = (wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}") for number in count(1))
    return next(folder for folder in taken if not folder.exists())
