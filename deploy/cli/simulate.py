"""``grandrounds simulate``: a whole federation in one process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ConfigOption

if TYPE_CHECKING:
    from ...common.study.study import Study
    from ...server.run.study_run import Attack
    from ..simulation.site_data import SiteData

DEFAULT_OUTPUT = Path("grandrounds-demo")


def simulate(
    context: typer.Context,
    config: ConfigOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results (default ./grandrounds-demo).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --output, from its last checkpoint.")
    ] = False,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit/--no-audit", help="After training, plant canaries in a twin of the study, for its report: seconds."
        ),
    ] = True,
    attack: Annotated[
        bool,
        typer.Option("--attack", help="Attack the trained adapter; what is found is in the report. Takes minutes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the display.")] = False,
) -> None:
    """Simulate a federation: hospitals, server, secure aggregation and privacy, on this machine.

    Without --data it runs on five built-in synthetic hospitals and SmolLM2-135M-Instruct.
    """
    from ...server.run.progress import phase
    from ..simulation.config import check_files, chosen_dropouts, prepare_records, read_simulation, read_tables
    from ..simulation.sites import check_dropouts
    from ..views.display import Display

    tables = read_tables(config, context.obj)
    if resume:
        folder = output or DEFAULT_OUTPUT
        tables = _settings_of(folder, given=tables)
    else:
        folder = output or _free_folder(DEFAULT_OUTPUT)
    study, simulation = read_simulation(tables)
    check_files(simulation)
    dropouts = chosen_dropouts(study, simulation)
    check_dropouts(study, dropouts)
    with Display(quiet=as_json) as display, _told_when_stopped(folder):
        with phase(display.observe, "libraries", "PyTorch and Flower"):
            from ...common.model.devices import open_device
            from ..audit.usual import usual_audit
            from ..simulation.simulate import resume as resume_simulation
            from ..simulation.simulate import simulate as run_simulation

            for device in simulation.devices:
                open_device(device)  # which is told before data are made for minutes
        records = prepare_records(simulation, display.observe)
        attacking = partial(_attacking, records.evaluation) if attack else None
        inputs: dict[str, Any] = {
            **records.inputs,
            "dropouts": dropouts,
            "devices": simulation.devices,
            "observe": display.observe,
            "audit": usual_audit if audit else None,
            "attack": attacking,
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


def _attacking(evaluation: Path, study: "Study", data: "SiteData") -> "Attack":
    """What attacks the trained adapter, before anything is trained: records that it cannot have are refused first."""
    from ...common.audit.attack_scores import require_of_nobody
    from ..attacks.simulation import SimulatedAttack

    require_of_nobody(study, app_sha256=None)
    attack = SimulatedAttack.of(study, data, evaluation, tell=lambda doing: None)
    return lambda model, adapter, manifest: attack.evidence(model, adapter, manifest).to_json()


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
    """A path as it is found from another folder too; a day as JSON has it."""
    from ..simulation.settings import BUILTIN_EVALUATION

    if isinstance(path, date):
        return path.isoformat()
    if not isinstance(path, Path):
        raise TypeError(type(path).__name__)
    return str(path if path == BUILTIN_EVALUATION else path.absolute())


def _free_folder(wanted: Path) -> Path:
    """``wanted``, or with the next number behind it if that is taken: results are never overwritten."""
    taken = (wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}") for number in count(1))
    return next(folder for folder in taken if not folder.exists())
