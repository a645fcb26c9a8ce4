import contextlib
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grandrounds.common.data.records import (
    Chat,
    PromptCompletion,
    Record,
    Text,
    Turn,
    parse_records,
    read_records,
)
from grandrounds.common.errors import DataError

Row = dict[str, Any]

QUOTE = "Zebedee has gout"  # stands in every refused file, and must not stand in what is said about it


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[Row]) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(value) if key == "messages" else value for key, value in row.items()})
    path.write_bytes(out.getvalue().encode("utf-8"))


def write_parquet(path: Path, rows: list[Row]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip)
turns = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3)
bodies = st.one_of(
    st.lists(st.fixed_dictionaries({"patient_id": texts, "text": texts}), min_size=1, max_size=5),
    st.lists(
        st.fixed_dictionaries({"patient_id": texts, "prompt": texts, "completion": texts}), min_size=1, max_size=5
    ),
    st.lists(st.fixed_dictionaries({"patient_id": texts, "messages": turns}), min_size=1, max_size=5),
)


def expected(row: Row) -> tuple[str, object]:
    identity = row["patient_id"].strip()
    if "text" in row:
        return identity, Text(text=row["text"])
    if "prompt" in row:
        return identity, PromptCompletion(prompt=row["prompt"], completion=row["completion"])
    return identity, Chat(messages=tuple(Turn(**turn) for turn in row["messages"]))


@pytest.mark.parametrize("ending", WRITERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=bodies)
def test_what_is_written_is_read_in_every_format(tmp_path: Path, ending: str, rows: list[Row]) -> None:
    path = tmp_path / f"site.{ending}"
    WRITERS[ending](path, rows)
    assert [(r.patient_id, r.content) for r in read_records(path)] == [expected(row) for row in rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ending=st.sampled_from(list(WRITERS)), data=st.binary(max_size=200))
def test_any_bytes_are_either_records_or_a_data_error(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"site.{ending}"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        assert read_records(path)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_number_is_the_same_patient_as_its_decimal_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"site.{ending}"
    WRITERS[ending](path, [{"patient_id": 17, "text": "a"}])
    assert read_records(path)[0].patient_id == "17"


def test_whole_floats_and_padded_strings_are_the_same_patient(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    write_jsonl(path, [{"patient_id": value, "text": "a"} for value in (17, 17.0, "17", " 17\t")])
    assert {record.patient_id for record in read_records(path)} == {"17"}


def test_a_byte_order_mark_and_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"patient_id": "a", "text": "x"}\r\n\n')
    assert [record.position for record in read_records(path)] == ["site.jsonl, line 2"]


def test_a_cell_may_span_lines_and_its_record_is_named_by_the_first(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text('patient_id,text\na,"one\ntwo"\n\nb,three\n', encoding="utf-8")
    assert [record.position for record in read_records(path)] == ["site.csv, line 2", "site.csv, line 5"]


def test_rows_in_memory_are_the_records_of_their_file(tmp_path: Path) -> None:
    rows = [{"patient_id": 1, "text": "well"}, {"patient_id": 2, "text": "ill"}]
    write_parquet(tmp_path / "site.parquet", rows)
    in_memory, in_file = parse_records("site", rows), read_records(tmp_path / "site.parquet")
    assert [(record.patient_id, record.content) for record in in_memory] == [
        (record.patient_id, record.content) for record in in_file
    ]


def test_a_broken_row_in_memory_is_refused_by_number_and_never_quoted() -> None:
    with pytest.raises(DataError, match="site, row 2") as refusal:
        parse_records("site", [{"patient_id": 1, "text": "well"}, {"patient_id": " ", "text": QUOTE}])
    assert QUOTE not in refusal.value.diagnostics()


def test_a_printed_record_shows_neither_patient_nor_text() -> None:
    shown = repr(Record(patient_id="Zebedee", position="line 1", content=Text(text=QUOTE)))
    assert "Zebedee" not in shown
    assert QUOTE not in shown


GOOD = json.dumps({"patient_id": "p", "text": QUOTE})
BROKEN_JSONL = {
    "an empty file": ("", "no records"),
    "broken JSON": (f'{GOOD}\n{{"patient_id": "p", "text": "{QUOTE}', "line 2"),
    "a deeply nested line": (f"{GOOD}\n{'[' * 200_000}", "line 2"),
    "a line that is no object": (f'{GOOD}\n"{QUOTE}"', "line 2"),
    "no patient_id": (f'{GOOD}\n{{"text": "{QUOTE}"}}', "line 2"),
    "a null patient_id": (f'{GOOD}\n{{"patient_id": null, "text": "{QUOTE}"}}', "line 2"),
    "a blank patient_id": (f'{GOOD}\n{{"patient_id": " ", "text": "{QUOTE}"}}', "line 2"),
    "a boolean patient_id": (f'{GOOD}\n{{"patient_id": true, "text": "{QUOTE}"}}', "line 2"),
    "a fractional patient_id": (f'{GOOD}\n{{"patient_id": 1.5, "text": "{QUOTE}"}}', "line 2"),
    "a patient_id that is not a number": (f'{GOOD}\n{{"patient_id": NaN, "text": "{QUOTE}"}}', "line 2"),
    "a patient_id beyond exact floats": (f'{GOOD}\n{{"patient_id": 1e17, "text": "{QUOTE}"}}', "line 2"),
    "an empty text": (f'{GOOD}\n{{"patient_id": "{QUOTE}", "text": " \\n"}}', "line 2"),
    "a text that is a number": (f'{GOOD}\n{{"patient_id": "{QUOTE}", "text": 3}}', "line 2"),
    "a lone surrogate": (f'{GOOD}\n{{"patient_id": "p", "text": "{QUOTE}\\ud800"}}', "line 2"),
    "neither text nor prompt": (f'{GOOD}\n{{"patient_id": "p", "note": "{QUOTE}"}}', "line 2"),
    "an unknown field": (f'{GOOD}\n{{"patient_id": "p", "text": "x", "{QUOTE}": 1}}', "line 2"),
    "a prompt alone": (f'{{"patient_id": "p", "prompt": "{QUOTE}"}}', "line 1"),
    "an empty completion": (f'{{"patient_id": "p", "prompt": "{QUOTE}", "completion": ""}}', "line 1"),
    "mixed kinds": (f'{GOOD}\n{{"patient_id": "p", "prompt": "{QUOTE}", "completion": "x"}}', "line 2"),
    "no messages": ('{"patient_id": "p", "messages": []}', "line 1"),
    "a message without a role": (f'{{"patient_id": "p", "messages": [{{"content": "{QUOTE}"}}]}}', "line 1"),
    "messages in broken JSON": ('{"patient_id": "p", "messages": "[{"}', "line 1"),
}


@pytest.mark.parametrize("content, where", BROKEN_JSONL.values(), ids=BROKEN_JSONL.keys())
def test_a_broken_jsonl_is_refused_by_line_and_never_quoted(tmp_path: Path, content: str, where: str) -> None:
    path = tmp_path / "site.jsonl"
    path.write_text(content, encoding="utf-8")
    assert_refused(path, where)


BROKEN_CSV = {
    "a header alone": ("patient_id,text\n", "no records"),
    "no header": (f"p,{QUOTE}\n", "no records"),
    "no header and two lines": (f"p,{QUOTE}\nq,{QUOTE}\n", "line 2"),
    "an unclosed quote": (f'patient_id,text\np,x\nq,"{QUOTE}\n', "line 3"),
    "text after a quote": (f'patient_id,text\np,"{QUOTE}"x\n', "line 2"),
    "too few cells": (f"patient_id,text\n{QUOTE}\n", "line 2"),
    "too many cells": (f"patient_id,text\np,a,{QUOTE}\n", "line 2"),
    "a column twice": (f"patient_id,text,text\np,a,{QUOTE}\n", "line 1"),
    "a cell without a text": (f"patient_id,text\n{QUOTE},\n", "line 2"),
    "a huge cell": (f"patient_id,text\np,{QUOTE * 10_000}\n", "line 2"),
}


@pytest.mark.parametrize("content, where", BROKEN_CSV.values(), ids=BROKEN_CSV.keys())
def test_a_broken_csv_is_refused_by_line_and_never_quoted(tmp_path: Path, content: str, where: str) -> None:
    path = tmp_path / "site.csv"
    path.write_text(content, encoding="utf-8")
    assert_refused(path, where)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_that_is_not_utf_8_is_refused_by_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"site.{ending}"
    path.write_bytes(f"{GOOD}\n{QUOTE}".encode() + b"\xff")
    assert_refused(path, "line 2")


BROKEN_PARQUET = {
    "no rows": (pyarrow.table({"patient_id": pyarrow.array([], pyarrow.string()), "text": []}), "no records"),
    "a null patient_id": (pyarrow.table({"patient_id": ["p", None], "text": ["x", QUOTE]}), "row 2"),
    "a null text": (pyarrow.table({"patient_id": ["p", QUOTE], "text": ["x", None]}), "row 2"),
    "bytes for a text": (pyarrow.table({"patient_id": ["p"], "text": [QUOTE.encode()]}), "row 1"),
    "no patient_id": (pyarrow.table({"text": [QUOTE]}), "row 1"),
    "a column twice": (pyarrow.table([["p"], ["x"], [QUOTE]], ["patient_id", "text", "text"]), "columns"),
    "strings that are not UTF-8": (
        pyarrow.table(
            {
                "patient_id": ["p"],
                "text": pyarrow.StringArray.from_buffers(
                    1, pyarrow.array([0, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"\xff\xfe")
                ),
            }
        ),
        "row 1",
    ),
}


@pytest.mark.parametrize("table, where", BROKEN_PARQUET.values(), ids=BROKEN_PARQUET.keys())
def test_a_broken_parquet_is_refused_by_row_and_never_quoted(tmp_path: Path, table: pyarrow.Table, where: str) -> None:
    path = tmp_path / "site.parquet"
    pyarrow.parquet.write_table(table, path)
    assert_refused(path, where)


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    path = tmp_path / "site=3" / "records.parquet"
    path.parent.mkdir()
    write_parquet(path, [{"patient_id": "p", "text": "x"}])
    assert [record.content for record in read_records(path)] == [Text(text="x")]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv", "missing.parquet", "site.xlsx", "site"])
def test_a_file_that_is_missing_or_of_another_kind_is_refused_by_name(tmp_path: Path, name: str) -> None:
    assert_refused(tmp_path / name, name)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"site.{ending}"
    path.mkdir()
    assert_refused(path, path.name)


def assert_refused(path: Path, where: str) -> None:
    with pytest.raises(DataError) as refusal:
        read_records(path)
    said = refusal.value.diagnostics()
    assert path.name in said
    assert where in said
    assert QUOTE not in said
    assert refusal.value.__suppress_context__  # a traceback must not show the parser's exception, which may quote
