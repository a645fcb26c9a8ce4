"""Held-out records may say whom they are about; records of sites may not."""

import json
from pathlib import Path

import pytest

from grandrounds.common.data.groups import OTHERS, groups_of, held_out, parse_held_out, read_held_out
from grandrounds.common.data.records import check_beginning, read_records
from grandrounds.common.errors import DataError
from grandrounds.common.sources.source import DataSource

ROWS: list[dict[str, object]] = [
    {"patient_id": "1", "text": "well", "age": 39.9, "sex": " F ", "diagnosis": "flu"},
    {"patient_id": "2", "text": "ill", "age": 40, "sex": "M", "diagnosis": "flu"},
    {"patient_id": "3", "text": "tired", "sex": ""},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    jsonl, csv, named = (tmp_path / name for name in ("a.jsonl", "a.csv", "named.csv"))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    csv.write_text("sex,patient_id,age,text,diagnosis\nF,1,39.9,well,flu\nM,2,40,ill,flu\n,3,,tired,\n")
    named.write_text("note,who,sex,age,diagnosis,site\nwell,1,F,39.9,flu,a\nill,2,M,40,flu,a\ntired,3,,,,b\n")
    return {"jsonl": jsonl, "csv": csv, "named": named}


def test_what_held_out_records_say_of_people_is_read_alike_from_every_table(files: dict[str, Path]) -> None:
    named = DataSource(files=(files["named"],), patient="who", text="note")
    tables: list[DataSource | Path] = [files["jsonl"], files["csv"], named]
    found = [*map(read_held_out, tables), parse_held_out("rows", ROWS)]
    for records in found:
        assert [record.patient_id for record in records] == ["1", "2", "3"]
        assert groups_of(records) == {
            "age": ["18–39", "40–64", None],
            "sex": ["F", "M", None],
            "diagnosis": ["of over 10 %", "of over 10 %", None],
        }
        assert "39" not in repr(records)


def test_a_site_s_records_with_such_columns_are_refused_as_before(files: dict[str, Path]) -> None:
    for name in ("jsonl", "csv"):
        check_beginning(held_out(files[name]))
        with pytest.raises(DataError, match="known"):
            read_records(files[name])
    named = DataSource(files=(files["named"],), patient="who", text="note")
    assert [record.traits for record in read_records(named)] == [{}, {}, {}], "what is not named is left out"
    held = held_out(named)
    assert held.model_dump() == named.model_dump() and held.fingerprint() == named.fingerprint()


def test_a_diagnosis_is_as_rare_as_its_patients_are_and_too_many_values_are_one_more_group() -> None:
    rows = [
        {
            "patient_id": str(number),
            "text": "x",
            "diagnosis": "flu" if number else "rare",
            "race": f"value {min(number, 13)}",
            "age": "80+" if number == 5 else "150",
            "language": "a\nb\x1b",
        }
        for number in range(60)
    ]
    found = groups_of(parse_held_out("rows", rows))
    assert found["diagnosis"] == ["of at most 2 % of patients", *["of over 10 %"] * 59]
    assert found["race"].count(OTHERS) == 2 and len(set(found["race"])) == 13
    assert set(found["age"]) == {"150", "80+"} and set(found["language"]) == {"a b�"}
