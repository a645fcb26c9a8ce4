"""Tables of records in files, JSONL, CSV or Parquet, as rows with their places: whole, or the file is refused."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .files import Reading, SourceFile, found_files
from .rows import COLUMNS, KINDS, KNOWN, PATIENT_ID, Column, Malformed, Rows, has_surrogates

if TYPE_CHECKING:
    from .source import DataSource

_PANDAS_INDEX: Final = "__index_level_"
_ENDINGS: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_BATCH: Final = 1024  # rows of Parquet held at a time
# One long note must not keep its site away. The limit is the whole process's, and no cell is longer than its file.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A file that is being read, and the one way to refuse it.

    ``columns`` has its names of columns by those of records; ``delimiter`` is of CSV.
    """

    file: SourceFile
    reading: Reading
    columns: Mapping[Column, str]
    encoding: str
    delimiter: str

    def rows(self, format_: str) -> Rows:
        """The rows of the file, by its ending. Raises DataError where it cannot be told whose they are."""
        kind = _ENDINGS.get(self.file.ending) if format_ == "auto" else format_
        if kind is None:
            fix = "name it .jsonl, .csv or .parquet, as it is, or say its format"
            self.refuse("", f"the ending {self.file.path.suffix!r} is not known", fix)
        return {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind](self)

    @property
    def _ours(self) -> Mapping[str, Column]:
        return {theirs: ours for ours, theirs in self.columns.items()}

    def named(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """The row by the names of records."""
        if not self._ours:
            return row
        return {ours: value for name, value in row.items() if (ours := self._our(name)) in KNOWN}

    def _our(self, name: str) -> str:
        """What the column of this name is among those of records; "" where another was named for what it is called."""
        return self._ours.get(name, "" if name in self.columns else name)

    def place(self, position: str) -> str:
        """The file's name with the line or row."""
        return self.file.place(position)

    def refuse(self, position: str, what: str, fix: str) -> NoReturn:
        """Raise the DataError of what stands there."""
        self.file.refuse(position, what, fix)

    def lines(self, *, newline: str) -> Iterator[str]:
        """The file's lines, one held at a time, split as ``newline`` of ``open`` says.

        Bytes that the encoding does not have are lone surrogates, which no text of a record may hold.
        """
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with self.reading.open(self.file) as file:
            yield from io.TextIOWrapper(file, encoding, errors="surrogateescape", newline=newline)

    def check_columns(self, position: str, header: Sequence[str]) -> None:
        """Raises DataError unless the columns are those of records; they are told by number, never by name."""
        for theirs in self.columns.values():
            if theirs not in header and len(header) > 1:
                fix = "compare --column with the first line of the file"
                self.refuse(position, f"no column is called {theirs}", fix)
        names = list(header)
        if self._ours:
            names = [ours for name in header if (ours := self._our(name)) in KNOWN]
        if len(set(names)) != len(names):
            self.refuse(position, "two columns have one name", "give each column one name")
        if PATIENT_ID not in names:
            what = "no column is called patient_id"
            fix = "give every record a patient_id (for CSV, in a header line); simulate has --column for --data"
            if len(header) == 1 and any(mark in header[0] for mark in ",;\t|"):
                what = "its columns are separated by another sign than a comma"
                if self.delimiter != ",":
                    what = f"its columns are not separated by {self.delimiter!r}"
                fix = "separate them by commas; simulate has --delimiter for --data"
            self.refuse(position, what, fix)
        extra = [number for number, name in enumerate(names, start=1) if name not in KNOWN]
        if any(not names[number - 1] or names[number - 1].startswith(_PANDAS_INDEX) for number in extra):
            what = f"column {extra[0]} has no name, as where pandas writes its index"
            self.refuse(position, f"{what}: {_numbered(extra, names)}", f"leave it out (index=False); {COLUMNS}")
        if extra:
            self.refuse(
                position,
                f"not all columns are known: {_numbered(extra, names)}",
                f"leave these out, or name yours (simulate has --column for --data); {COLUMNS}",
            )
        if set(names) - {PATIENT_ID} not in KINDS:
            self.refuse(position, "a column is missing, or there are those of two kinds of records", COLUMNS)


def _numbered(extra: Sequence[int], names: Sequence[str]) -> str:
    some = ", ".join(map(str, extra[:10])) + (", …" if len(extra) > 10 else "")
    return f"of {len(names)}, {len(extra)} too many (number {some})"


def _jsonl(table: _Table) -> Iterator[tuple[str, Mapping[str, object] | Malformed]]:
    for number, line in enumerate(table.lines(newline="\n"), start=1):
        if line.strip():
            row = _json_row(line)
            yield table.place(f"line {number}"), row if isinstance(row, Malformed) else table.named(row)


def _json_row(line: str) -> Mapping[str, object] | Malformed:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        if has_surrogates(line):
            return Malformed(what="is not UTF-8", fix="save the file as UTF-8; simulate has --encoding for --data")
        row = None
    if isinstance(row, dict):
        return row
    return Malformed(what="is not a JSON object", fix="write one JSON object on each line")


def _csv(table: _Table) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.reader(table.lines(newline=""), strict=True, delimiter=table.delimiter)
    header: list[str] | None = None
    while True:
        position = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error:  # and whose the lines after it are, is anybody's guess
            table.refuse(position, "is not valid CSV", "quote cells as RFC 4180 says")
        if cells is None:
            return
        if header is None:
            header = cells
            table.check_columns(position, header)
        elif len(cells) == len(header):
            yield table.place(position), table.named(dict(zip(header, cells, strict=True)))
        elif cells:  # as where a text was not quoted, whose parts may look like another patient's record
            fix = "give every line one cell a column"
            table.refuse(position, f"has {len(cells)} cells and the header {len(header)}", fix)


def _parquet(table: _Table) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # Not read_table(): it would also read folders, and columns out of names such as `site=3/` on the path.
        with pyarrow.parquet.ParquetFile(table.file.path) as file:
            names = file.schema_arrow.names
            table.check_columns("", names)
            for batch in file.iter_batches(_BATCH):
                for cells in zip(*batch.columns, strict=True):
                    number += 1
                    yield table.place(f"row {number}"), table.named(dict(zip(names, map(_python, cells), strict=True)))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException):
        table.refuse("", "it cannot be read as Parquet", "check the path, its permissions and how it was written")


def _python(scalar: Any) -> object:
    """A cell's value as Python has it; None where it has none, as for strings that are not UTF-8."""
    import pyarrow

    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return None


def table_rows(source: "DataSource", reading: Reading) -> Rows:
    """The rows of all files of a source. Raises DataError where it cannot be told whose they are."""
    delimiter = "\t" if source.delimiter == "tab" else source.delimiter
    files = found_files(source.files, _ENDINGS)
    reading.expect(files)
    for file in files:
        columns, encoding = source.columns, source.encoding
        table = _Table(file=file, reading=reading, columns=columns, encoding=encoding, delimiter=delimiter)
        yield from table.rows(source.format)
