"""``grandrounds plan``: what a study will promise and cost, before a record is read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from .options import ConfigOption, StudyCommand, named

if TYPE_CHECKING:
    from ...common.study.study import Study
    from ..bench.utility.forecast import Forecast
    from ..builtin.patients import Split

_PANEL = "Data and model"


class PlanCommand(StudyCommand):
    """Proposes of a study what is not given."""

    proposed: ClassVar = {
        "clipping_norm": "median on public text",
        "units_per_step": "{}, or as many as the noise needs",
    }


def plan(
    context: typer.Context,
    config: ConfigOption = None,
    sites: Annotated[int | None, typer.Option(min=3, max=1000, help="Hospitals (default 5).")] = None,
    nominal_units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N or SITE=N",
            help="Units, public or coarse: of each of --sites (default 24), or of each site by its name.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the proposed study here, for simulate --config and server init --study.")
    ] = None,
    public_text: Annotated[
        Path | None,
        typer.Option(
            help="Records of nobody who has to be protected (.jsonl .csv .parquet), for the clipping norm, unless the "
            "study is as the built-in model was tuned (default: built-in synthetic patients).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    public_text_kind: Annotated[
        Literal["public", "synthetic", "deidentified", "identifiable"] | None,
        typer.Option(
            help="What --public-text is; needed for --sweep.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            metavar="GRID.toml",
            help="Train with every setting of a grid on --public-text, with the study's noise, and plan the best. "
            "Where no noise_stages are stated, attempts beyond a setting's own rounds have more noise.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    no_benchmark: Annotated[
        bool,
        typer.Option("--no-benchmark", help="Load no model: no gradient norms, no hours.", rich_help_panel=_PANEL),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="rows.jsonl of `bench utility`: what perplexity to expect, by runs of this trust, epsilon, number of "
            "rounds and of sites."
        ),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=1, help="A perplexity: how many patients does it take, in these rounds, at these sites?"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a study: its noise, batch and hours for a target epsilon, and, if none was tuned, a clipping norm.

    Reads no record that has to be protected. What is not given is proposed.
    """
    from ...common.study.study import DEFAULT_TARGET_EPSILON
    from ...common.system.files import write_atomically
    from ..plan.grid import Grid, require_public, require_unprotected
    from ..plan.plan import EPSILONS, Plan, with_clipping_norm, with_enough_units
    from ..simulation.config import read_simulation, read_tables
    from ..views.console import plain_console, steps
    from ..views.plan import print_plan, study_file

    tables = read_tables(config, context.obj)
    if sites is not None or nominal_units:
        tables["sites"] = _sites(sites, nominal_units or [])
    if output is not None:
        _require_free(output)
    study, simulation = read_simulation(tables)
    forecast = _forecast(study, simulation.builtin_split, results, quality)
    require_unprotected(public_text, public_text_kind)
    text = None if sweep is None else require_public(public_text, public_text_kind)
    grid = None if sweep is None else Grid.read(sweep)
    given = set(tables.get("privacy", {}))
    with steps() as step:
        trial = None
        if not no_benchmark:
            step("loading PyTorch")
            from ..plan.trial import run_trial

            trial = run_trial(study, public_text, step)
            if "clipping_norm" not in given:
                study = with_clipping_norm(study, trial)
        if simulation.units_per_step is None and not given & {"sampling_probability", "noise_multiplier"}:
            study = with_enough_units(study, trial)
        swept = None
        if grid is not None and text is not None:
            from ..plan.sweep import sweep as sweep_over

            swept = sweep_over(study, grid, text, tell=step)
            study, before = swept.best.study, study
            if trial is not None and (study.model, study.data) != (before.model, before.data):
                trial = run_trial(study, public_text, step)
        step("calibrating the noise")
        target = study.privacy.target_epsilon or DEFAULT_TARGET_EPSILON
        planned = Plan.of(study, trial, epsilons={*EPSILONS, target})
    forecast = None if forecast is None else forecast.beside(study)
    if output is not None:
        chosen = "" if swept is None else swept.chosen
        write_atomically(output, study_file(planned, study, simulation, chosen).encode())
    if as_json:
        found = {"forecast": None if forecast is None else asdict(forecast)}
        found["sweep"] = None if swept is None else swept.figures
        typer.echo(json.dumps({**asdict(planned), "study": planned.study.model_dump(mode="json"), **found}))
        return
    console = plain_console(highlight=False)
    if swept is not None:
        from ..views.sweep import print_sweep  # it loads torch, as the sweep did

        print_sweep(console, swept)
    print_plan(console, planned, output)
    for line in () if forecast is None else forecast.lines():
        console.print(f"\n{line}")


def _forecast(study: "Study", split: "Split", results: Path | None, quality: float | None) -> "Forecast | None":
    """What the results say of the study, before anything is computed. Raises StudyError and StorageError."""
    from ...common.errors import StudyError
    from ..bench.utility.forecast import Forecast
    from ..bench.utility.row import RowFile

    if results is not None:
        return Forecast.of(RowFile(results).read(), study, split=split, perplexity=quality)
    if quality is not None:
        raise StudyError(
            "--quality is given without --results",
            why="a quality is read from what was measured",
            fix="give both: --results rows.jsonl --quality 10",
        )
    return None


def _sites(sites: int | None, nominal_units: list[str]) -> list[dict[str, Any]]:
    """The roster: ``SITE=N`` as given, or so many hospitals of one size. Raises StudyError."""
    from ...common.errors import StudyError
    from ..simulation.settings import Simulation

    each = nominal_units or [str(Simulation().builtin_patients)]
    if len(each) == 1 and each[0].isdecimal() and each[0].isascii():
        number = sites or Simulation().builtin_sites
        return [{"name": f"hospital-{i}", "nominal_units": int(each[0])} for i in range(1, number + 1)]
    roster = named("--nominal-units", each, int)
    if sites not in (None, len(roster)):
        raise StudyError(
            f"--sites {sites}, but nominal units of {len(roster)} sites",
            why="the noise follows from both",
            fix="leave --sites out, or give one number for all sites",
        )
    return [{"name": name, "nominal_units": units} for name, units in roster.items()]


def _require_free(output: Path) -> None:
    from ...common.errors import StorageError

    if output.exists():
        raise StorageError(
            f"{output} exists", why="a study that people have edited is never overwritten", fix="choose another name"
        )
