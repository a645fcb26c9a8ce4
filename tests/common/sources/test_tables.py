import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.record import PromptCompletion
from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError
from grandrounds.common.sources.crosswalk import Crosswalk
from grandrounds.common.sources.files import Reading
from grandrounds.common.sources.rows import OTHER_IDS, Malformed
from grandrounds.common.sources.source import DataSource, read_rows

NAME = "Zebedee"
Rows = list[dict[str, Any]]
# As a hospital's warehouse has them: a column that pandas made floats of, words that are no nulls, zeros in front.
EXPORT: Rows = [
    {"ward": "7", "subject_id": "007", "kind": "DS", "class": 1.0, "findings": "NA", "note": 'müde; 38°\n"ill"'},
    {"ward": "7", "subject_id": "1.0", "kind": "RR", "class": 2.0, "findings": None, "note": "2026-05-03"},
    {"ward": "8", "subject_id": "A-1", "kind": "XX", "class": None, "findings": "old", "note": "well"},
]


def write_csv(path: Path, rows: Rows, *, delimiter: str = ",", encoding: str = "utf-8") -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))


def write_zst(path: Path, rows: Rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(pyarrow.compress(text.encode(), codec="zstd", asbytes=True))


def write_dataset(folder: Path, rows: Rows, *, name: str = "data-00000-of-00001.arrow", cached: bool = False) -> None:
    """As `datasets` lays it out: `save_to_disk`, or its cache."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    (folder / "dataset_info.json").write_text("{}")
    if not cached:
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": "train"}))


def write_splits(folder: Path, rows: Rows) -> None:
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    write_dataset(folder / "train", rows)
    write_dataset(folder / "test", [{**rows[0], "note": "of the test"}])


ROADS: dict[str, tuple[Callable[[Path, Rows], None], dict[str, Any]]] = {
    "notes.csv": (write_csv, {}),
    "notes.tsv": (lambda path, rows: write_csv(path, rows, delimiter="\t"), {}),
    "excel.csv": (lambda path, rows: write_csv(path, rows, delimiter=";", encoding="cp1252"), {"encoding": "cp1252"}),
    "pipes.txt": (
        lambda path, rows: write_csv(path, rows, delimiter="|", encoding="utf-16"),
        {"encoding": "utf-16", "format": "csv"},
    ),
    "notes.jsonl.zst": (write_zst, {}),
    "notes.parquet": (lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path), {}),
    "saved": (write_dataset, {}),
    "cached": (lambda path, rows: write_dataset(path, rows, name="notes-train.arrow", cached=True), {"split": "train"}),
    "splits": (write_splits, {"format": "datasets", "split": "train"}),
}


@pytest.mark.parametrize("name", ROADS)
def test_the_same_rows_come_by_every_road_with_the_columns_that_are_named_and_the_values_as_they_are_written(
    tmp_path: Path, name: str
) -> None:
    write, described = ROADS[name]
    write(tmp_path / name, EXPORT)
    source = {"files": [tmp_path / name], "patient": "subject_id", "where": {"kind": ["DS", "RR"]}, **described}
    reading = Reading()
    rows = [row for _, row in read_rows(DataSource.model_validate({**source, "text": "note"}), reading)]
    assert rows == [{"patient_id": row["subject_id"], "text": row["note"]} for row in EXPORT[:2]]
    assert reading.share == 1
    templates = {"prompt": "Findings: {findings} {{{ward}}}", "completion": "note"}
    found = read_records(DataSource.model_validate({**source, **templates, "where": {"class": [1, 2]}}))
    assert [(record.patient_id, record.content) for record in found] == [
        ("007", PromptCompletion(prompt="Findings: NA {7}", completion=EXPORT[0]["note"])),
        ("1.0", PromptCompletion(prompt="Findings:  {7}", completion="2026-05-03")),
    ]


def test_a_template_of_which_all_columns_are_empty_makes_no_record_of_its_row(tmp_path: Path) -> None:
    write_zst(tmp_path / "notes.jsonl", [{"patient_id": 1, "a": " ", "b": None}, {"patient_id": 1, "a": NAME}])
    with pytest.raises(DataError, match="line 1: its text is empty"):
        read_records(DataSource(files=(tmp_path / "notes.jsonl",), text="A: {a}, B: {b}"))


@pytest.mark.parametrize("type_", ["string", "large_string", "binary"])
def test_of_a_template_bytes_are_their_words_and_what_is_not_utf8_is_set_aside(tmp_path: Path, type_: str) -> None:
    raw = pyarrow.array([b"chest cl\xc3\xa4r", b"opac\xffity", b"well"])
    cells = {
        "binary": raw,
        "string": raw.view("string"),
        "large_string": raw.cast("large_binary").view("large_string"),
    }[type_]
    table = pyarrow.table({"patient_id": ["1", "2", "3"], "findings": cells, "completion": ["a", "b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "notes.parquet")
    quarantine = Quarantine()
    source = DataSource(files=(tmp_path / "notes.parquet",), prompt="{completion}: {findings}")
    found = [each.content for each in read_records(source, quarantine=quarantine)]
    assert [each.prompt for each in found if isinstance(each, PromptCompletion)] == [
        "a: chest clär",
        "c: well",
    ]
    assert [one.position for one in quarantine.set_aside] == ["notes.parquet, row 2"]


@pytest.mark.parametrize(
    "line",
    [
        f'{{"patient_id": "A", "text": "{NAME}", "patient_id": "B"}}',
        f'{{"patient_id": "A", "messages": [{{"role": "user", "content": "a", "content": "{NAME}"}}]}}',
    ],
)
def test_a_field_that_is_there_twice_is_nobody_s(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1: names a field twice in one object") as refusal:
        read_records(tmp_path / "notes.jsonl")
    assert NAME not in refusal.value.diagnostics()


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf8", "U8", "utf-8-sig"])
def test_a_byte_order_mark_is_passed_over_however_utf8_is_spelt(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "notes.jsonl").write_text('{"patient_id": 1, "text": "well"}\n', encoding="utf-8-sig")
    assert len(read_records(DataSource(files=(tmp_path / "notes.jsonl",), encoding=encoding))) == 1


@pytest.mark.parametrize("name", ["notes.csv", "notes.parquet", "saved"])
@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"patient": "mrn"}, "no column is called mrn"),
        ({"text": "{findngs}"}, "no column is called findngs"),
        ({"where": {"status": ["final"]}}, "no column is called status"),
        ({"where": {"kind": ["AB"]}}, "where leaves none of the rows"),
        ({}, "of 6, 6 too many|no column is called patient_id"),
    ],
)
def test_a_name_that_no_column_has_is_refused_as_it_is_configured(
    tmp_path: Path, name: str, described: dict[str, Any], said: str
) -> None:
    ROADS[name][0](tmp_path / name, [{**row, "findings": NAME} for row in EXPORT])
    whole = {"patient": "subject_id", "text": "note", **described} if described else {}
    with pytest.raises(DataError, match=said) as refusal:
        read_records(DataSource.model_validate({"files": [tmp_path / name], **whole}))
    assert NAME not in refusal.value.diagnostics()


@pytest.mark.parametrize(
    "described",
    [
        {"text": "{a"},
        {"text": "{a.b!r}"},
        {"text": "{a:>9}"},
        {"text": "{{a}}"},
        {"text": "{}"},
        {"patient": "{a}"},
        {"messages": "{a}"},
        {"encoding": "rot13"},
        {"encoding": "klingon"},
        {"where": {"a": []}},
    ],
)
def test_a_template_that_is_none_and_an_unknown_encoding_are_refused_with_the_field(described: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(described))):
        DataSource.model_validate({"files": ["notes.csv"], **described})


@pytest.mark.parametrize("text", [f'patient_id,text\np,"{NAME}\nq,ill\nr,well\n', "patient_id,text\np,a\0b\nq,\xff\n"])
def test_a_quote_that_is_not_closed_makes_no_patient_of_those_after_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 2: is not valid CSV|line 3: its text is not of the encoding") as refusal:
        read_records(tmp_path / "notes.csv")
    assert NAME not in refusal.value.diagnostics()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("utf-8", "utf-16"),
        ("utf-16", "utf-8"),
        ("utf-16-le", "utf-8"),
        ("utf-8", "utf-32"),
        ("cp1252", "utf-8"),
        ("utf-16", "cp1252"),
        ("utf-8", "punycode"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_of_another_encoding_is_told_so_with_the_setting(
    tmp_path: Path, written: str, read: str, ending: str
) -> None:
    rows = [{"mrn": f"{NAME} Müller", "note": "wach"}, {"mrn": "Möller", "note": f"{NAME} schläft"}]
    as_json = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "notes.jsonl").write_bytes(as_json.encode(written))
    write_csv(tmp_path / "notes.csv", rows, encoding=written)
    for patient, text in (("mrn", "note"), ("note", "mrn")):
        source = DataSource(files=(tmp_path / f"notes.{ending}",), patient=patient, text=text, encoding=read)
        with pytest.raises(DataError, match=rf"notes\.{ending}, line \d: .*is not of the encoding") as refusal:
            read_records(source)
        assert "encoding = " in refusal.value.fix
        assert NAME not in refusal.value.diagnostics()


@pytest.mark.parametrize("name", ["../notes.arrow", "/etc/passwd", 7, None])
def test_a_dataset_names_no_file_outside_its_folder(tmp_path: Path, name: object) -> None:
    write_dataset(tmp_path / "saved", EXPORT)
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=r"state\.json: it cannot be read"):
        read_records(tmp_path / "saved")


def test_of_a_dataset_with_splits_one_has_to_be_chosen(tmp_path: Path) -> None:
    write_splits(tmp_path / "splits", EXPORT)
    with pytest.raises(DataError, match=r"splits: the dataset has 2 splits.*") as refusal:
        read_records(tmp_path / "splits")
    assert 'split = "train"' in refusal.value.fix


NOTES = "patient_id,text\n007,a\n8,b\nA-17,c\n9,d\n"


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_identifiers_of_a_crosswalk_are_their_patients_however_they_are_spelt(tmp_path: Path, ending: str) -> None:
    (tmp_path / "notes.csv").write_text(NOTES)
    walk: Rows = [{"from": one, "to": to} for one, to in (("7", "P1"), ("8", "p1"), ("a\u201117", "P2"), ("P2", "P2"))]
    named = [{"x": 1, **row} if ending == "csv" else {"To": row["to"], " FROM": row["from"]} for row in walk]
    write = {"csv": write_csv, "parquet": ROADS["notes.parquet"][0], "jsonl": write_zst}[ending]
    write(tmp_path / f"walk.{ending}", named)
    source = DataSource(files=(tmp_path / "notes.csv",), crosswalk=tmp_path / f"walk.{ending}")
    assert [record.patient_id for record in read_records(source)] == ["P1", "P1", "P2", "9"]
    fingerprint = source.fingerprint()
    write(tmp_path / f"walk.{ending}", named[1:])
    assert source.fingerprint() != fingerprint


@pytest.mark.parametrize(
    ("walk", "said"),
    [
        (f"from,to\n1,{NAME}\n01,2\n", "walk.csv, line 3: leads to another patient than walk.csv, line 2"),
        (f"from,to\n1,{NAME}\n{NAME},3\n", "line 2: leads to a patient whom walk.csv, line 3 leads away from"),
        (f"from,to\n{NAME},\n", "line 2: an identifier is missing"),
        (f"from,to\n{NAME}\n", "line 2: has 1 cells"),
        (f"{NAME}\n1\n", "line 1: it has no two columns from and to"),
        (f"7,{NAME}\n8,{NAME}\n", "line 1: it has no two columns from and to"),
        ("from,to,To\n7,8,8\n", "line 1: it has no two columns from and to"),
        ("\ufefffrom,to\n", None),
        ("from,to\n", None),
    ],
)
def test_a_crosswalk_that_leads_two_ways_or_further_on_is_refused(tmp_path: Path, walk: str, said: str | None) -> None:
    (tmp_path / "notes.csv").write_text(NOTES)
    (tmp_path / "walk.csv").write_text(walk, encoding="utf-8")
    source = DataSource(files=(tmp_path / "notes.csv",), crosswalk=tmp_path / "walk.csv", encoding="UTF-8")
    if said is None:
        assert len(read_records(source)) == 4
        return
    with pytest.raises(DataError, match=re.escape(said)) as refusal:
        read_records(source)
    assert NAME not in refusal.value.diagnostics()


@pytest.mark.parametrize(
    ("encoding", "cut"),
    [("utf-16", b"\x00"), ("utf-16", b"\x00\xdc\x41\x00"), ("utf-7", b"+\x80"), ("iso2022_jp", b"\x1b$B\x20")],
)
def test_what_an_encoding_cannot_go_on_from_is_refused_without_a_word(
    tmp_path: Path, encoding: str, cut: bytes
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(json.dumps({"patient_id": "7", "text": NAME}).encode(encoding) + cut)
    with pytest.raises(DataError, match="line 1: is not of the encoding that is expected") as refused:
        read_records(DataSource(files=(path,), encoding=encoding))
    assert NAME not in refused.value.diagnostics()


def test_what_was_said_of_a_source_is_what_is_written_of_it() -> None:
    whole: Any = "notes.csv"
    assert DataSource.of(whole).model_dump(mode="json") == whole
    whole = {"files": ["a", "b"], "patient": "mrn", "where": {"kind": ["DS"]}}
    assert DataSource.model_validate(whole).model_dump(mode="json") == whole


@pytest.mark.parametrize("patient", [{"value": "7"}, True, ["7"], 7.5])
def test_a_crosswalk_makes_no_identifier_of_what_is_none(tmp_path: Path, patient: object) -> None:
    (tmp_path / "walk.csv").write_text("from,to\n7,8\n")
    (tmp_path / "notes.jsonl").write_text(json.dumps({"patient_id": patient, "text": "well"}))
    with pytest.raises(DataError, match="unusable patient_id"):
        read_records(DataSource(files=(tmp_path / "notes.jsonl",), crosswalk=tmp_path / "walk.csv"))


def test_a_crosswalk_adds_to_the_identifiers_that_a_row_comes_with() -> None:
    rows = [("row 1", {"patient_id": "a", OTHER_IDS: ("b",)})]
    ((_, row),) = Crosswalk({"a": "P", "z": "P"}).applied(rows)
    assert not isinstance(row, Malformed) and row == {"patient_id": "P", OTHER_IDS: ("b", "a", "z")}
