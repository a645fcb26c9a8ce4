"""What a simulation is asked for: options beside a file, and where nominal units come from."""

from pathlib import Path
from typing import Any

import pytest

from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError, StudyError
from grandrounds.common.schema import known
from grandrounds.common.sources.source import DataSource
from grandrounds.common.study.completion import complete_study
from grandrounds.deploy.simulation.config import check_files, prepare_records, read_simulation, read_tables

SYNTHETIC = {"data": {"evaluation": "synthetic"}}
STATED = {"north": 33, "south": 12, "west": 7}


def tables(**simulation: Any) -> dict[str, Any]:
    """Data of three sites, in files that are not there: whoever counts in them fails."""
    return {"simulation": {"data": {site: f"{site}.jsonl" for site in STATED}, **simulation}}


def units(asked: dict[str, Any]) -> dict[str, int]:
    study, _ = read_simulation(asked)
    return {site.name: site.nominal_units for site in study.sites}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two records each of 33, 12 and 7 patients."""
    for site, patients in STATED.items():
        lines = [f'{{"patient_id": {i // 2}, "text": "well"}}\n' for i in range(2 * patients)]
        (tmp_path / f"{site}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {site: str(tmp_path / f"{site}.jsonl") for site in STATED}


def test_stated_units_stand_as_they_are() -> None:
    assert units(tables(nominal_units=STATED)) == STATED


def test_units_of_sites_in_the_study_stand() -> None:
    asked = tables() | {"sites": [{"name": site, "nominal_units": number} for site, number in STATED.items()]}
    assert units(asked) == STATED


def test_units_that_nobody_states_are_refused_and_no_record_is_read() -> None:
    with pytest.raises(StudyError, match=r"^nominal units are not stated for north, south, west$"):
        read_simulation(tables())


def test_a_section_that_is_no_table_is_refused_by_its_name() -> None:
    for section in ("privacy", "data", "training"):
        with pytest.raises(StudyError, match=f"{section} = 4"):
            read_simulation({section: 4})


def test_built_in_hospitals_state_theirs() -> None:
    assert set(units({}).values()) == {24}


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [
        ({"north": 33, "south": 12}, "^nominal units are not stated for west$"),
        ({**STATED, "east": 9}, "^nominal units are stated for east, of which there is no data$"),
        ({"north": 33, "south": 12, "wset": 7}, "for wset, of which there is no data; .* not stated for west"),
        ({**STATED, "west": 0}, "simulation.nominal_units.west = 0: needs 1 or more"),
        ({**STATED, "west": "7"}, 'nominal_units.west = "7": needs a whole number'),
        ({**STATED, "St. Mary": 7}, 'nominal_units.St. Mary = "St. Mary": needs a name'),
    ],
)
def test_units_that_are_not_one_number_for_each_site_with_data_are_refused(
    stated: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StudyError, match=complaint):
        read_simulation(tables(nominal_units=stated))


def test_units_that_are_stated_twice_or_without_data_are_refused() -> None:
    sites = [{"name": site, "nominal_units": number} for site, number in STATED.items()]
    with pytest.raises(StudyError, match="stated twice"):
        read_simulation(tables(nominal_units=STATED) | {"sites": sites})
    with pytest.raises(StudyError, match="for north, south, west, of which there is no data"):
        read_simulation({"simulation": {"nominal_units": STATED}})


def test_opt_outs_are_read_for_sites_with_data_and_for_built_in_ones(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "north.txt").write_text("nobody\n", encoding="utf-8")
    opted_out = {"north": str(tmp_path / "north.txt")}
    _, simulation = read_simulation(
        tables(data=files, nominal_units=STATED, evaluation=files["west"], opted_out=opted_out) | SYNTHETIC
    )
    prepared = prepare_records(simulation, lambda event: None)
    assert prepared.opted_out == {"north": tmp_path / "north.txt"}
    assert prepared.cohorts == {site: DataSource(files=(Path(path),)) for site, path in files.items()}
    assert prepared.evaluation == Path(files["west"])


def test_built_in_hospitals_say_that_their_records_are_synthetic_and_given_ones_are_taken_as_identifiable(
    files: dict[str, str],
) -> None:
    built_in, _ = read_simulation({})
    assert {(site.sensitivity, site.sha256) for site in built_in.sites} == {("synthetic", None)}
    assert all(site.records and site.residency for site in built_in.sites)
    given, _ = read_simulation(tables(data=files, nominal_units=STATED))
    assert {(site.sensitivity, site.records) for site in given.sites} == {("identifiable", None)}


def test_what_sites_say_of_their_records_is_the_study_s() -> None:
    described = {"records": "discharge letters", "sensitivity": "deidentified", "residency": "Vienna"}
    asked = tables() | {
        "sites": [{"name": site, "nominal_units": number, **described} for site, number in STATED.items()]
    }
    study, _ = read_simulation(asked)
    for site in study.sites:
        assert site.model_dump(include=set(described)) == described


def test_rules_of_a_site_that_no_simulation_applies_are_in_no_report_of_one() -> None:
    asked = tables() | {"sites": [{"name": site, "nominal_units": number} for site, number in STATED.items()]}
    asked["sites"][1]["minimised"] = ["dates shifted"]
    with pytest.raises(StudyError, match=f"the study says of {list(STATED)[1]} what is taken out of the records"):
        read_simulation(asked)


def test_an_option_wins_over_the_file_and_what_was_not_given_leaves_it(tmp_path: Path) -> None:
    config = tmp_path / "study.toml"
    config.write_text("[training]\nrounds = 3\nlearning_rate = 0.1\n[model]\nrank = 2\n", encoding="utf-8")
    options: dict[str, dict[str, Any]]
    options = {"training": {"rounds": 5, "learning_rate": None}, "model": {"target_modules": ()}}
    assert read_tables(config, options) == {
        "training": {"rounds": 5, "learning_rate": 0.1},
        "model": {"rank": 2},
    }


def test_data_without_evaluation_records_are_refused_with_what_to_add(files: dict[str, str]) -> None:
    _, simulation = read_simulation(tables(data=files, nominal_units=STATED))
    with pytest.raises(StudyError, match="no records to evaluate") as refused:
        check_files(simulation)
    assert "--evaluation builtin" in refused.value.fix
    for chosen in (files["west"], "builtin"):
        _, simulation = read_simulation(
            tables(data=files, nominal_units=STATED, evaluation=chosen) | {"data": {"evaluation": "synthetic"}}
        )
        check_files(simulation)


def test_columns_are_those_of_sites_that_do_not_describe_their_own(files: dict[str, str]) -> None:
    west = {"files": [files["west"]], "text": "body"}
    asked = {"data": files | {"west": west}, "nominal_units": STATED, "delimiter": ";", "columns": {"text": "note"}}
    _, simulation = read_simulation(SYNTHETIC | {"simulation": asked})
    assert {name: (file.text, file.delimiter) for name, file in simulation.files.items()} == {
        "north": ("note", ";"),
        "south": ("note", ";"),
        "west": ("body", None),
    }
    _, simulation = read_simulation(SYNTHETIC | {"simulation": asked | {"columns": {"text": "a", "prompt": "b"}}})
    with pytest.raises(StudyError, match=r"simulation.columns.prompt: name text; or prompt and completion"):
        _ = simulation.files


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("west.jsonl", None, r"^west\.jsonl: it cannot be read"),
        ("west.csv", "", r"^west\.csv: it holds no records"),
        ("west.csv", "patient_id,text\n", r"^west\.csv: it holds no records"),
        ("west.csv", "subject;note\n1;well\n", "no column is called patient_id"),
        ("west.csv", "subject,note\n1,well\n", "no column is called patient_id"),
        ("west.jsonl", '{"text": "well"}\n', "line 1: has no patient_id"),
        ("west.txt", "well\n", "the ending '.txt' is not known"),
    ],
)
@pytest.mark.parametrize("place", ["data", "evaluation"])
def test_a_file_that_begins_as_none_of_records_is_refused_before_anything_is_computed(
    name: str, text: str | None, complaint: str, place: str, files: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "wrong" / name
    path.parent.mkdir()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    given = {"data": files | {"west": str(path)}, "evaluation": "builtin"}
    given = given if place == "data" else {"data": files, "evaluation": str(path)}
    _, simulation = read_simulation(tables(nominal_units=STATED, **given) | SYNTHETIC)
    with pytest.raises(DataError, match=complaint):
        prepare_records(simulation, lambda event: None)


ALL = [("St. Mary's", 1), ("Zürich", 2), ("St. Mary's", 3), ("Ost", 4), ("Zürich", 2)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One table of three hospitals' records."""
    lines = [f"{hospital};{patient};well;{number}" for number, (hospital, patient) in enumerate(ALL)]
    path = tmp_path / "all.csv"
    path.write_text("\n".join(["hospital;mrn;note;x", *lines]), encoding="utf-8")
    return path


def of_table(table: Path, **asked: Any) -> dict[str, Any]:
    described = {"columns": {"patient_id": "mrn", "text": "note"}, "site_column": "hospital", "data": str(table)}
    return {"simulation": {**described, **asked}}


def test_sites_of_one_table_are_called_after_their_values_and_have_the_rows_that_have_them(table: Path) -> None:
    stated = {"st-mary-s": 9, "zurich": 8, "ost": 7}
    study, simulation = read_simulation(of_table(table, nominal_units=stated))
    assert {site.name: site.nominal_units for site in study.sites} == stated
    patients = {name: [one.patient_id for one in read_records(source)] for name, source in simulation.files.items()}
    assert patients == {"st-mary-s": ["1", "3"], "zurich": ["2", "2"], "ost": ["4"]}
    assert units(of_table(table) | {"privacy": {"noise": False}}) == {"st-mary-s": 2, "zurich": 1, "ost": 1}
    whole = {"files": [str(table)], "patient": "mrn", "text": "note", "where": {"hospital": ["Ost", "Zürich"]}}
    with pytest.raises(StudyError, match="stated for st-mary-s, of which there is no data"):
        read_simulation({"simulation": {"table": whole, "site_column": "hospital", "nominal_units": stated}})


@pytest.mark.parametrize(
    ("hospitals", "asked", "complaint"),
    [
        ("Zürich", {"nominal_units": {"ost": 1, "zurich": 1}}, "all.csv, line 2: no nominal units are stated for"),
        ("Zürich", {"nominal_units": {"st-mary-s": 1, "ost": 1, "zurich": 1, "w": 1}}, "stated for w, of which there"),
        ("Zürich", {}, "nominal units are stated for no site"),
        (
            "st mary s",
            {"nominal_units": {"st-mary-s": 1}},
            "line 3: hospital makes the same site's name as in ",
        ),
        ("東京", {"nominal_units": {"st-mary-s": 1}}, "line 3: hospital has no value that makes a site's name"),
        ("Zürich", {"nominal_units": {"ost": 1}, "site_column": "ward"}, "line 1: no column is called ward"),
        ("Zürich", {"nominal_units": {"ost": 1}, "site_column": None}, "simulation.table: of whom its rows are"),
        ("Zürich", {"data": {"ost": "ost.csv"}}, "simulation.site_column: is of one table"),
        ("Zürich", {"nominal_units": {"ost": 1}, "site_column": "{x}"}, "site_column = .* needs a column's name"),
    ],
)
def test_values_that_make_no_sites_are_refused_by_their_place(
    table: Path, hospitals: str, asked: dict[str, Any], complaint: str
) -> None:
    table.write_text(table.read_text().replace("Zürich", hospitals), encoding="utf-8")
    with pytest.raises((DataError, StudyError), match=complaint) as refused:
        read_simulation(of_table(table, **asked))
    assert "Mary's" not in refused.value.diagnostics()


def test_a_column_of_patients_is_not_taken_for_that_of_sites(table: Path) -> None:
    rows = "\n".join(f"Ost;{patient};well;0" for patient in range(1001))
    table.write_text(f"hospital;mrn;note;x\n{rows}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1002: mrn has more than 1,000 values"):
        read_simulation(of_table(table, site_column="mrn", nominal_units={"ost": 1}))


def test_of_the_built_in_patients_attempts_beyond_the_rounds_have_more_noise_and_the_others_less() -> None:
    study, _ = read_simulation({})
    assert study.privacy.noise_stages == ((5, 2.0),)
    assert read_simulation({"simulation": {"dropouts": ["hospital-2@3"]}})[0] == study  # as it is when nothing is said
    alike, _ = read_simulation({"privacy": {"noise_stages": []}})
    planned, unplanned = (known(complete_study(each).privacy.noise_multiplier) for each in (study, alike))
    assert 0.93 * unplanned < planned < 0.95 * unplanned


@pytest.mark.parametrize(
    "said",
    [
        {"training": {"max_attempts": 6}},
        {"privacy": {"noise_stages": []}},
        {"privacy": {"noise_multiplier": 1.2}},
        {"privacy": {"noise": False}},
        {"privacy": {"trust": "local"}},
        {"simulation": {"dropouts": ["hospital-1@2", "hospital-2@2"]}},  # more than a round bears
        {"sites": [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")]},
        tables(nominal_units=STATED, evaluation="builtin"),
    ],
)
def test_whoever_says_how_noise_attempts_or_sites_are_has_them_so(said: dict[str, Any]) -> None:
    study, _ = read_simulation(said)
    assert study.privacy.noise_stages == ()
