"""Records of a site as its file holds them: JSONL, CSV or Parquet, every record checked before anything uses it."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeGuard

from ..errors import DataError

_LARGEST_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True, kw_only=True)
class Text:
    """A whole text; every token of it is learnt."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PromptCompletion:
    """A prompt, which is only read, and its completion, which is learnt."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Turns of a chat, to be laid out by the model's own chat template."""

    messages: tuple[Turn, ...]


Content = Text | PromptCompletion | Chat


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of one patient; ``position`` is its file's name with the line or row. Printing shows nothing else."""

    patient_id: str = field(repr=False)
    position: str
    content: Content = field(repr=False)


def read_records(path: Path) -> list[Record]:
    """Every record of a ``.jsonl``, ``.csv`` or ``.parquet`` file, in its order.

    A record has ``patient_id`` and either ``text``, or ``prompt`` and ``completion``, or ``messages`` (a list of
    ``role`` and ``content``; in CSV, that list as JSON). Patient ids lose surrounding whitespace, and a number is the
    same id as its decimal text. Raises DataError, which names the file and the line or row but never quotes from it,
    not even a column's name: in a CSV without a header that would be a record.
    """
    source = _Source(path)
    read_rows = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower())
    if read_rows is None:
        source.refuse("", f"the ending {path.suffix!r} is not known", "name it .jsonl, .csv or .parquet, as it is")
    return _parse_rows(source, read_rows(source))


def parse_records(name: str, rows: Iterable[Mapping[str, object]]) -> list[Record]:
    """Records of rows in memory, with the fields that ``read_records`` describes; errors call them ``name``."""
    numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return _parse_rows(_Source(Path(name)), numbered)


def _parse_rows(source: "_Source", rows: Iterable[tuple[str, Mapping[str, object]]]) -> list[Record]:
    records: list[Record] = []
    for position, row in rows:
        record = _parse_record(source, position, row)
        if records and type(record.content) is not type(records[0].content):
            source.refuse(
                position,
                f"holds another kind of record than {records[0].position}",
                "keep one kind a file: text, prompt with completion, or messages",
            )
        records.append(record)
    if not records:
        source.refuse("", "it holds no records", "give a file with at least one patient")
    return records


class _Source:
    """A file that is being read, and the one way to refuse it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, position: str, what: str, fix: str) -> NoReturn:
        """Raise the DataError; ``from None`` because a parser's own exception may quote the record."""
        where = f"{self.path.name}, {position}:" if position else f"{self.path.name}:"
        raise DataError(f"{where} {what}", why="a study trains only on data that was read whole", fix=fix) from None

    def text(self) -> str:
        """The whole file as text."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            self.refuse("", f"it cannot be read ({error.strerror})", "check the path and its permissions")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self.refuse(f"line {line}", "is not UTF-8", "save the file as UTF-8")


def _jsonl_rows(source: _Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(source.text().split("\n"), start=1):
        position = f"line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            source.refuse(position, "is not valid JSON", "write one JSON object on each line")
        if not isinstance(row, dict):
            source.refuse(position, "is not a JSON object", "write one JSON object on each line")
        yield position, row


def _csv_rows(source: _Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.reader(io.StringIO(source.text(), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        position = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error:
            fix = f"quote cells as RFC 4180 says; cells above {csv.field_size_limit()} characters need JSONL or Parquet"
            source.refuse(position, "is not valid CSV", fix)
        if cells is None:
            return
        if header is None:
            header = cells
            if len(set(header)) != len(header):
                source.refuse(position, "the header names a column twice", "give each column one name")
        elif len(cells) == len(header):
            yield position, dict(zip(header, cells, strict=True))
        elif cells:
            fix = "give every line one cell a column"
            source.refuse(position, f"has {len(cells)} cells and the header {len(header)}", fix)


def _parquet_rows(source: _Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Not read_table(): it would also read folders, and columns out of names such as `site=3/` on the path.
        with pyarrow.parquet.ParquetFile(source.path) as file:
            table = file.read()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException):
        source.refuse("", "it cannot be read as Parquet", "check the path, its permissions and how it was written")
    if len(set(table.column_names)) != table.num_columns:
        source.refuse("", "two columns have one name", "give each column one name")
    number = 0
    for batch in table.to_batches():
        for index in range(batch.num_rows):
            number += 1
            position = f"row {number}"
            try:
                row = {
                    name: column[index].as_py() for name, column in zip(table.column_names, batch.columns, strict=True)
                }
            except UnicodeDecodeError:
                source.refuse(position, "is not UTF-8", "write strings as UTF-8")
            except (ValueError, OverflowError, pyarrow.ArrowException):
                source.refuse(
                    position, "holds a value that cannot be read", "keep patient_id and the text columns only"
                )
            yield position, row


def _parse_record(source: _Source, position: str, row: Mapping[str, object]) -> Record:
    fields = set(row) - {"patient_id"}
    if "patient_id" not in row:
        source.refuse(position, "has no patient_id", "give every record a patient_id (for CSV, in a header line)")
    patient_id = _parse_patient_id(row["patient_id"])
    if patient_id is None:
        source.refuse(position, "has an empty or unusable patient_id", "give every record its patient's identifier")

    def text(name: str) -> str:
        value = row[name]
        if not _is_text(value):
            source.refuse(position, f"its {name} is empty or not text", f"give it a {name}, or leave the record out")
        return value

    content: Content
    if fields == {"text"}:
        content = Text(text=text("text"))
    elif fields == {"prompt", "completion"}:
        content = PromptCompletion(prompt=text("prompt"), completion=text("completion"))
    elif fields == {"messages"}:
        messages = _parse_messages(row["messages"])
        if messages is None:
            source.refuse(position, "its messages are malformed", "give a list of {role, content}, none of them empty")
        content = Chat(messages=messages)
    else:
        fix = "have patient_id and exactly one of: text; prompt and completion; messages"
        source.refuse(position, "lacks a column, or has one that is not known", fix)
    return Record(patient_id=patient_id, position=f"{source.path.name}, {position}", content=content)


def _parse_patient_id(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT:
        value = int(value)  # a column of integers with gaps arrives as floats
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if _is_text(value) else None


def _parse_messages(value: object) -> tuple[Turn, ...] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    messages = []
    for turn in value:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            return None
        if not _is_text(turn["role"]) or not _is_text(turn["content"]):
            return None
        messages.append(Turn(role=turn["role"], content=turn["content"]))
    return tuple(messages)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string of more than whitespace that UTF-8 can hold (JSON can spell lone surrogates)."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)
