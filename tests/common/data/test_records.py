import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.record import Chat, PromptCompletion, Record, SetAsideContent, Text, Turn
from grandrounds.common.data.records import parse_records, read_records
from grandrounds.common.errors import DataError
from grandrounds.common.sources.identifiers import names_nobody
from grandrounds.common.sources.source import DataSource

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
ids = texts.filter(lambda text: not names_nobody(text))
turns = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3)
bodies = st.one_of(
    st.lists(st.fixed_dictionaries({"patient_id": ids, "text": texts}), min_size=1, max_size=5),
    st.lists(st.fixed_dictionaries({"patient_id": ids, "prompt": texts, "completion": texts}), min_size=1, max_size=5),
    st.lists(st.fixed_dictionaries({"patient_id": ids, "messages": turns}), min_size=1, max_size=5),
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
    found = read_records(path, similar="different")
    assert [(record.patient_id, record.content) for record in found] == [expected(row) for row in rows]


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
    "no header": (f"p,{QUOTE}\n", "line 1"),
    "no header and two lines": (f"p,{QUOTE}\nq,{QUOTE}\n", "line 1"),
    "an index of pandas": (f",patient_id,text\n0,p,{QUOTE}\n", "line 1: column 1 has no name"),
    "more columns": (f"hadm,patient_id,x,text\n1,p,2,{QUOTE}\n", "line 1: not all columns are known: of 4, 2 too many"),
    "a column too few": (f"patient_id,prompt\np,{QUOTE}\n", "line 1: a column is missing"),
    "an unclosed quote": (f'patient_id,text\np,x\nq,"{QUOTE}\n', "line 3"),
    "text after a quote": (f'patient_id,text\np,"{QUOTE}"x\n', "line 2"),
    "too few cells": (f"patient_id,text\n{QUOTE}\n", "line 2"),
    "too many cells": (f"patient_id,text\np,a,{QUOTE}\n", "line 2"),
    "a column twice": (f"patient_id,text,text\np,a,{QUOTE}\n", "line 1"),
    "a cell without a text": (f"patient_id,text\n{QUOTE},\n", "line 2"),
}


@pytest.mark.parametrize("content, where", BROKEN_CSV.values(), ids=BROKEN_CSV.keys())
def test_a_broken_csv_is_refused_by_line_and_never_quoted(tmp_path: Path, content: str, where: str) -> None:
    path = tmp_path / "site.csv"
    path.write_text(content, encoding="utf-8")
    assert_refused(path, where)


def test_one_long_text_does_not_stop_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text(f"patient_id,text\np,{QUOTE * 10_000}\n", encoding="utf-8")
    (found,) = read_records(path)
    assert found.content == Text(text=QUOTE * 10_000)


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("jsonl", f'{GOOD}\n{{"patient_id": "q", "text": "{QUOTE} \xe9"}}'),
        ("jsonl", f"{GOOD}\n{QUOTE} \xe9"),
        ("csv", f"patient_id,text\np,{QUOTE} \xe9\n"),
        ("csv", f"patient_id,text\n\xe9,{QUOTE}\n"),
    ],
)
def test_what_is_not_utf_8_is_refused_by_line(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"site.{ending}"
    path.write_text(text, encoding="latin-1")
    assert_refused(path, "line 2")


@pytest.mark.parametrize("name", ["site.jsonl.gz", "site.jsonl", "site.jsonl.zst"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_compressed_file_is_read_whatever_its_name_says_of_that(tmp_path: Path, name: str, codec: str) -> None:
    packed = b"".join(pyarrow.compress(f"{GOOD}\n".encode(), codec=codec, asbytes=True) for _ in range(2))
    (tmp_path / name).write_bytes(packed)
    assert len(read_records(tmp_path / name)) == 2
    (tmp_path / name).write_bytes(packed[:-3])
    assert_refused(tmp_path / name, "cannot be read")
    (tmp_path / name).write_bytes(b"PK\x03\x04" + packed)
    assert_refused(tmp_path / name, "it is compressed by zip")


def test_ndjson_is_jsonl(tmp_path: Path) -> None:
    (tmp_path / "site.ndjson").write_text(GOOD, encoding="utf-8")
    assert read_records(tmp_path / "site.ndjson")[0].patient_id == "p"


BROKEN_PARQUET = {
    "no rows": (pyarrow.table({"patient_id": pyarrow.array([], pyarrow.string()), "text": []}), "no records"),
    "a null patient_id": (pyarrow.table({"patient_id": ["p", None], "text": ["x", QUOTE]}), "row 2"),
    "a null text": (pyarrow.table({"patient_id": ["p", QUOTE], "text": ["x", None]}), "row 2"),
    "bytes for a text": (pyarrow.table({"patient_id": ["p"], "text": [QUOTE.encode()]}), "row 1"),
    "no patient_id": (pyarrow.table({"text": [QUOTE]}), "no column is called patient_id"),
    "an index of pandas": (
        pyarrow.table({"patient_id": ["p"], "text": [QUOTE], "__index_level_0__": [4]}),
        "column 3 has no name",
    ),
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


def test_values_of_numpy_are_read_as_python_s_own() -> None:
    turns = np.array([{"role": "user", "content": np.str_("a")}], dtype=object)
    ids = (np.int64(7), np.float32(7.0), np.str_("7"), np.array(7), 7)
    assert {record.patient_id for record in parse_records("site", [{"patient_id": i, "text": "a"} for i in ids])} == {
        "7"
    }
    (chat,) = parse_records("site", [{"patient_id": np.uint8(7), "messages": turns}])
    assert chat.content == Chat(messages=(Turn(role="user", content="a"),))


@pytest.mark.parametrize("value", [np.bool_(True), np.float64(1.5), np.datetime64("2026-05-03"), [7], b"7"])
def test_an_identifier_of_another_type_is_refused_with_its_type(value: object) -> None:
    with pytest.raises(DataError, match=r"row 1: has an empty or unusable patient_id \((bool|float|date|list|bytes)\)"):
        parse_records("site", [{"patient_id": value, "text": "a"}])


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("word", ["nan", "NULL", "None", "n/a", "-", "unknown"])
def test_a_word_for_a_missing_patient_refuses_the_file(tmp_path: Path, ending: str, word: str) -> None:
    path = tmp_path / f"site.{ending}"
    WRITERS[ending](path, [{"patient_id": "p", "text": QUOTE}, {"patient_id": word, "text": QUOTE}])
    assert_refused(path, "row 2" if ending == "parquet" else "line 3" if ending == "csv" else "line 2")
    with pytest.raises(DataError):
        read_records(path, quarantine=Quarantine())


SPELLED = ["7", "8", "7.0", "Zebedee-07", "ZEBEDEE\u20117", "8"]


@pytest.mark.parametrize("ending", WRITERS)
def test_identifiers_that_differ_in_spelling_alone_are_refused_by_place_unless_it_is_said_whose_they_are(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"site.{ending}"
    WRITERS[ending](path, [{"patient_id": spelled, "text": "a"} for spelled in SPELLED])
    with pytest.raises(DataError, match="in spelling alone") as refusal:
        read_records(path)
    said = refusal.value.diagnostics()
    first = 2 if ending == "csv" else 1
    place = "row" if ending == "parquet" else "line"
    for one, other in ((0, 2), (3, 4)):
        assert f"{path.name}, {place} {first + one} and {path.name}, {place} {first + other}" in said
    assert "zebedee" not in said.casefold()
    same = [record.patient_id for record in read_records(path, similar="same")]
    assert same == ["7", "8", "7", "ZEBEDEE\u20117", "ZEBEDEE\u20117", "8"]
    assert [record.patient_id for record in read_records(path, similar="different")] == SPELLED


def test_a_patient_of_many_spellings_is_as_many_units_where_nothing_is_refused() -> None:
    rows = [{"patient_id": spelled, "text": "a"} for spelled in ("7", "7.0", "007", "A-17", "a-17", "A\u201117")]
    assert len({record.patient_id for record in parse_records("site", rows, similar="different")}) == 6
    assert len({record.patient_id for record in parse_records("site", rows, similar="same")}) == 2


def many(*rows: object) -> str:
    """JSONL of sound records, and among them some that are not."""
    sound = [{"patient_id": f"p{number}", "text": "well"} for number in range(4)]
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in [*sound, *rows])


CONTENT = {
    "an empty text": {"patient_id": "q", "text": " "},
    "a number for a text": {"patient_id": "q", "text": 3},
    "no text": {"patient_id": "q"},
    "another field": {"patient_id": "q", "text": "x", QUOTE: 1},
    "half a pair": f'{{"patient_id": "q", "text": "{QUOTE}\\ud800"}}',
    "messages without roles": {"patient_id": "q", "messages": [{"content": QUOTE}]},
}


@pytest.mark.parametrize("row", CONTENT.values(), ids=CONTENT.keys())
def test_a_record_that_cannot_be_read_is_set_aside_in_its_place(tmp_path: Path, row: object) -> None:
    path, quarantine = tmp_path / "site.jsonl", Quarantine()
    path.write_text(many(row, {"patient_id": "q", "text": "ill"}), encoding="utf-8")
    found = read_records(path, quarantine=quarantine)
    assert [record.patient_id for record in found] == ["p0", "p1", "p2", "p3", "q", "q"]
    assert [found.index(record) for record in found if record.content == SetAsideContent()] == [4]
    (noted,) = quarantine.set_aside
    assert noted.position == "site.jsonl, line 5"
    said = "\n".join(quarantine.lines())
    assert noted.reason in said and noted.position in said
    assert QUOTE not in said
    assert_refused(path, "line 5")


@pytest.mark.parametrize("line", [f'{{"patient_id": "q", "text": "{QUOTE}', f'"{QUOTE}"', f"[{QUOTE}]"])
def test_a_line_that_has_no_patient_is_set_aside_without_one(tmp_path: Path, line: str) -> None:
    path, quarantine = tmp_path / "site.jsonl", Quarantine()
    path.write_text(many(line), encoding="utf-8")
    assert [record.patient_id for record in read_records(path, quarantine=quarantine)] == ["p0", "p1", "p2", "p3"]
    assert [one.position for one in quarantine.set_aside] == ["site.jsonl, line 5"]


def test_the_first_record_may_be_the_one_that_is_set_aside(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "site.csv", Quarantine()
    path.write_text("patient_id,text\nq,\np,well\n", encoding="utf-8")
    assert [record.content for record in read_records(path, quarantine=quarantine)] == [
        SetAsideContent(),
        Text(text="well"),
    ]
    assert [one.position for one in quarantine.set_aside] == ["site.csv, line 2"]


def test_what_kind_others_are_of_decides_over_no_record(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "site.jsonl", Quarantine()
    path.write_text(json.dumps({"patient_id": "q", "prompt": QUOTE, "completion": "x"}) + "\n" + many())
    found = read_records(path, quarantine=quarantine)
    assert [type(record.content) for record in found] == [PromptCompletion, *[Text] * 4]
    assert not quarantine.set_aside


def test_a_file_of_which_most_cannot_be_read_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    path.write_text('{"patient_id": 1, "note": "a"}\n{"patient_id": 2, "note": "b"}\n{"patient_id": 3, "text": "c"}')
    with pytest.raises(DataError, match="line 1: lacks a field, or has one that is not known, and most of the source"):
        read_records(path, quarantine=Quarantine())


@pytest.mark.parametrize(
    "text", ["patient_id,text\np,a\nq\n", 'patient_id,text\np,a\nq,"b"c\n', "patient_id,text\np,a,b\n"]
)
def test_a_csv_whose_rows_may_be_anybody_s_is_refused_and_nothing_of_it_set_aside(tmp_path: Path, text: str) -> None:
    path, quarantine = tmp_path / "site.csv", Quarantine()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        read_records(path, quarantine=quarantine)
    assert not quarantine.set_aside


OTHERWISE: dict[str, Any] = {
    "patient": "subject_id",
    "text": "note",
    "encoding": "cp1252",
    "delimiter": ";",
}


def test_a_file_with_other_names_another_encoding_and_semicolons_is_read_as_it_is_described(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text('hadm;subject_id;text;note\n7;p;short;"müde; 38°"\n', "cp1252")
    (found,) = read_records(DataSource(files=(path,), **OTHERWISE))
    assert (found.patient_id, found.content) == ("p", Text(text="müde; 38°"))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_other_names_are_those_of_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"site.{ending}"
    rows = [{"subject_id": "p", "note": "well", "ward": 3}]
    if ending == "jsonl":
        path.write_text(json.dumps(rows[0]), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (found,) = read_records(DataSource(files=(path,), patient="subject_id", text="note"))
    assert (found.patient_id, found.content) == ("p", Text(text="well"))


@pytest.mark.parametrize(
    ("header", "described", "complaint"),
    [
        ("subject;note", OTHERWISE, "line 1: no column is called subject_id"),
        ("subject_id,note", OTHERWISE, "its columns are not separated by ';'"),
        ("subject_id;note", OTHERWISE | {"delimiter": ","}, "its columns are not separated by ','"),
        ("subject_id;note;note", OTHERWISE, "two columns have one name: note"),
        ("subject_id;body", OTHERWISE | {"text": None}, "a column is missing"),
        ("subject_id;text;messages", OTHERWISE | {"text": None}, "there are those of two kinds"),
    ],
)
def test_a_description_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: str, described: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "site.csv"
    path.write_text(f"{header}\np;{QUOTE}\n", "cp1252")
    with pytest.raises(DataError, match=re.escape(complaint)) as refused:
        read_records(DataSource(files=(path,), **described))
    assert QUOTE not in refused.value.diagnostics()


def test_of_two_kinds_of_which_there_are_as_many_the_order_does_not_decide() -> None:
    rows = [{"patient_id": "p", "text": "well"}, {"patient_id": "q", "prompt": "ill", "completion": "x"}]
    for order in (rows, rows[::-1]):
        found = parse_records("site", order, quarantine=Quarantine())
        assert {type(record.content) for record in found if record.patient_id == "p"} == {Text}


def test_a_record_that_would_take_all_memory_is_set_aside() -> None:
    long = "well " * (1 << 21)
    rows = [{"patient_id": "p", "text": text} for text in (long, "well", "well")]
    found = parse_records("site", rows, quarantine=(quarantine := Quarantine()))
    assert [isinstance(record.content, SetAsideContent) for record in found] == [True, False, False]
    assert [one.reason for one in quarantine.set_aside] == ["is longer than 8,388,608 characters"]
