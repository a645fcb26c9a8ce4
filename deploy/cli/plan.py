"""``grandrounds plan``: what a study will promise and cost, before a record is read."""

import json
from dataclasses import asdict
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


def plan(
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
        Path | None, typer.Option(help="Write the proposed study here; simulate --config reads it.")
    ] = None,
    public_text: Annotated[
        Path | None,
        typer.Option(
            help="Records of nobody who has to be protected (.jsonl .csv .parquet), for the clipping norm "
            "(default: built-in synthetic patients).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    no_benchmark: Annotated[
        bool,
        typer.Option("--no-benchmark", help="Load no model: no gradient norms, no hours.", rich_help_panel=MODEL),
    ] = False,
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
        typer.Option(
            help="Largest norm of a unit's gradient (default: median on public text).", rich_help_panel=PRIVACY
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Units in a step on average, over all sites (default 24, or as many as the noise needs).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    physical_batch: PhysicalBatchOption = None,
    rounds: Annotated[
        int | None, typer.Option(help="Steps of the shared adapter (default 4).", rich_help_panel=TRAINING)
    ] = None,
    max_attempts: MaxAttemptsOption = None,
    local_steps: LocalStepsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a study: its noise, batch and hours for a target epsilon, and a clipping norm from public text.

    Reads no record that has to be protected. What is not given is proposed.
    """
    from rich.console import Console

    from ...common.study.study import DEFAULT_TARGET_EPSILON
    from ...common.system.files import write_atomically
    from ..plan.plan import EPSILONS, Plan, with_clipping_norm, with_enough_units
    from ..simulation.config import read_simulation, read_tables
    from ..views.plan import print_plan, study_file

    tables = read_tables(
        config,
        {
            "model": {"name": model, "target_modules": listed(target_modules), "rank": rank},
            "data": {"max_tokens": max_tokens, "records_per_unit": records_per_unit},
            "privacy": {
                "unit": privacy_unit and privacy_unit.value,
                "trust": trust and trust.value,
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
                "physical_batch": physical_batch,
            },
            "secagg": {"threshold": threshold},
            "simulation": {"units_per_step": batch},
        },
    )
    if sites is not None or nominal_units:
        tables["sites"] = _sites(sites, nominal_units or [])
    if output is not None:
        _require_free(output)
    study, simulation = read_simulation(tables)
    given = set(tables.get("privacy", {}))
    with Console(stderr=True).status("accountant") as status:
        trial = None
        if not no_benchmark:
            from ..plan.trial import run_trial

            trial = run_trial(study, public_text, status.update)
            if "clipping_norm" not in given:
                study = with_clipping_norm(study, trial)
        status.update("accountant")
        if simulation.units_per_step is None and not given & {"sampling_probability", "noise_multiplier"}:
            study = with_enough_units(study, trial)
        target = study.privacy.target_epsilon or DEFAULT_TARGET_EPSILON
        planned = Plan.of(study, trial, epsilons={*EPSILONS, target})
    if output is not None:
        write_atomically(output, study_file(planned, study, simulation).encode())
    if as_json:
        typer.echo(json.dumps({**asdict(planned), "study": planned.study.model_dump(mode="json")}))
    else:
        print_plan(Console(highlight=False), planned, output)


def _sites(sites: int | None, nominal_units: list[str]) -> list[dict[str, Any]]:
    """The roster: ``SITE=N`` as given, or so many hospitals of one size. Raises StudyError."""
    from ...common.errors import StudyError
    from ..simulation.config import BUILTIN_UNITS
    from ..simulation.settings import Simulation

    each = nominal_units or [str(BUILTIN_UNITS)]
    if len(each) == 1 and each[0].isdecimal() and each[0].isascii():
        number = sites or Simulation().builtin_sites
        return [{"name": f"hospital-{i}", "nominal_units": int(each[0])} for i in range(1, number + 1)]
    named = named_numbers(each)
    if sites not in (None, len(named)):
        raise StudyError(
            f"--sites {sites}, but nominal units of {len(named)} sites",
            why="the noise follows from both",
            fix="leave --sites out, or give one number for all sites",
        )
    return [{"name": name, "nominal_units": units} for name, units in named.items()]


def _require_free(output: Path) -> None:
    from ...common.errors import StorageError

    if output.exists():
        raise StorageError(
            f"{output} exists", why="a study that people have edited is never overwritten", fix="choose another name"
        )
