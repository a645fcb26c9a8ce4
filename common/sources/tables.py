"""Tables in files, JSON lines, CSV, Parquet or Arrow: their rows with their places, whole, or the file is refused."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .columns import Columns, Refuse
from .files import LONGEST, Reading, SourceFile, found_files
from .rows import SAY_ENCODING, UNDECODABLE, Malformed, Rows, codec, has_surrogates, utf8

if TYPE_CHECKING:
    from .source import DataSource

# The standard library reads CSV: its strict reader refuses a quote that is not closed, where pyarrow takes what
# follows, other patients' notes, for the rest of one; it tells lines; and tokenising takes ten times its time.
ENDINGS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_DELIMITERS: Final = (",", ";", "\t", "|")
_BATCH: Final = 1024  # rows of Parquet held at a time
_PAGE: Final = 1 << 20  # bytes of a column of Parquet read at a time: by itself, pyarrow holds all of a row group
csv.field_size_limit(LONGEST)  # the whole process's

_Cells = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file that is being read.

    ``needed`` says which names of its header are read, and calls what it is given, to refuse the file, where these are
    not what it needs. ``delimiter`` is of CSV; without one it is that of the most columns in the first line.
    """

    file: SourceFile
    reading: Reading
    needed: Callable[[Sequence[str], Refuse], Collection[str]]
    encoding: str = "utf-8"
    delimiter: str | None = None

    def rows(self, format_: str = "auto") -> Iterator[tuple[str, _Cells | Malformed]]:
        """The cells by their columns' names, of all rows, as they are in a JSON object. Raises DataError."""
        kind = ENDINGS.get(self.file.ending) if format_ == "auto" else format_
        if kind is None:
            fix = f"name it {', '.join(ENDINGS)}, as it is, or give its format"
            self.file.refuse("", f"the ending {self.file.path.suffix!r} is not known", fix)
        return {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "arrow": _arrow}[kind](self)

    def lines(self, *, newline: str) -> Iterator[str]:
        """The file's lines, one held at a time, split as ``newline`` of ``open`` says.

        Bytes that the encoding does not have are lone surrogates, which no text of a record may hold.
        """
        number = 0
        with self.reading.open(self.file) as file:
            lines = io.TextIOWrapper(file, codec(self.encoding), errors="surrogateescape", newline=newline)
            while line := self._line(lines, number + 1):
                number += 1
                yield line

    def _line(self, lines: io.TextIOWrapper, number: int) -> str:
        """The next line, "" at the end."""
        try:
            line = lines.readline(LONGEST)
        except UnicodeError:  # of encodings in which nothing can be read from there on, as UTF-16
            self.file.refuse(f"line {number}", f"{UNDECODABLE}, nor is what follows", SAY_ENCODING)
        if len(line) == LONGEST:
            fix = "write one record a line, and texts of less than 256 MiB"
            self.file.refuse(f"line {number}", "is too long", fix)
        return line

    def refuse_header(self, position: str, header: Sequence[str], what: str, fix: str) -> NoReturn:
        """Refuse the file for its header, or for the encoding, if that made it what it is. Raises DataError."""
        if _is_garbled("".join(header)):
            what, fix = UNDECODABLE, SAY_ENCODING
        self.file.refuse(position, what, fix)


def table_rows(source: "DataSource", reading: Reading) -> Rows:
    """The rows of all files of a source, by the names of records. Raises DataError."""
    return rows_of(found_files(source.files, ENDINGS), source, reading, format_=source.format)


def rows_of(files: Sequence[SourceFile], source: "DataSource", reading: Reading, *, format_: str) -> Rows:
    """The rows of a source's ``files``, all of a format, or each of its own ("auto"). Raises DataError."""
    columns = Columns.of(source)
    reading.expect(files)
    passed_over = read = False
    for file in files:
        table = Table(
            file=file,
            reading=reading,
            needed=columns.needed,
            encoding=source.encoding,
            delimiter="\t" if source.delimiter == "tab" else source.delimiter,
        )
        for place, cells in table.rows(format_):
            row = cells if isinstance(cells, Malformed) else columns.row(cells)
            if row is None:
                passed_over = True
            else:
                read = True
                yield place, row
    if passed_over and not read:
        files[0].refuse("", "where leaves none of the rows", "compare its values with those of the columns")


def _jsonl(table: Table) -> Iterator[tuple[str, _Cells | Malformed]]:
    for number, line in enumerate(table.lines(newline="\n"), start=1):
        if line.strip():
            yield table.file.place(f"line {number}"), _json_row(line)


def _json_row(line: str) -> _Cells | Malformed:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except _TwiceError:
        return Malformed(
            what="names a field twice in one object", fix="write each field once: which is meant, none can say"
        )
    except (ValueError, RecursionError):
        if _is_garbled(line):
            return Malformed(what=UNDECODABLE, fix=SAY_ENCODING)
        row = None
    if isinstance(row, dict):
        return row
    return Malformed(what="is not a JSON object", fix="write one JSON object on each line")


class _TwiceError(Exception):
    """An object of JSON has two fields of one name."""


def _object(fields: list[tuple[str, object]]) -> dict[str, object]:
    """Without this, the last field would count: another patient's identifier, perhaps."""
    found = dict(fields)
    if len(found) != len(fields):
        raise _TwiceError
    return found


def _is_garbled(line: str) -> bool:
    """Whether it was written in another encoding than it is read in: UTF-16 has zeros that no other has."""
    return "\0" in line or has_surrogates(line)


def _csv(table: Table) -> Iterator[tuple[str, _Cells]]:
    lines = table.lines(newline="")
    first = next(lines, "")
    delimiter = table.delimiter or max(_DELIMITERS, key=lambda mark: len(_split(first, mark)))
    reader = csv.reader(chain([first] if first else [], lines), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    indices: Mapping[str, int] = {}
    while True:
        position = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error:  # and whose the lines after it are, is anybody's guess
            fix = "quote cells as RFC 4180 says, and close each quote"
            table.file.refuse(position, "is not valid CSV, or begins a cell that does not end", fix)
        if cells is None:
            return
        if header is None:
            header = cells
            if len(header) == 1 and table.delimiter and any(mark in header[0] for mark in _DELIMITERS):
                fix = "say which sign does, or leave the delimiter out: it is found in the first line"
                table.file.refuse(position, f"its columns are not separated by {table.delimiter!r}", fix)
            refuse = partial(table.refuse_header, position, header)
            indices = {name: header.index(name) for name in table.needed(header, refuse)}
        elif len(cells) == len(header):
            yield table.file.place(position), {name: cells[index] for name, index in indices.items()}
        elif cells:  # as where a text was not quoted, whose parts may look like another patient's record
            fix = "give every line one cell a column"
            table.file.refuse(position, f"has {len(cells)} cells and the header {len(header)}", fix)


def _split(line: str, delimiter: str) -> Sequence[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _parquet(table: Table) -> Iterator[tuple[str, _Cells]]:
    import pyarrow
    import pyarrow.parquet

    file, before, number = table.file, table.reading.done, 0
    try:
        size = file.path.stat().st_size
        # Not read_table(): it would also read folders, and columns out of names such as `site=3/` on the path.
        with pyarrow.parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=_PAGE) as parquet:
            needed = [*table.needed(parquet.schema_arrow.names, partial(table.file.refuse, ""))]
            for batch in parquet.iter_batches(_BATCH, columns=needed):
                for row in _batch_rows(batch, needed):
                    number += 1
                    yield file.place(f"row {number}"), row
                table.reading.done = before + size * number // parquet.metadata.num_rows
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException):  # a damaged one may ask for all memory
        file.refuse("", "it cannot be read as Parquet", "check the path, its permissions and how it was written")


def _arrow(table: Table) -> Iterator[tuple[str, _Cells]]:
    import pyarrow
    import pyarrow.ipc

    number = 0
    with table.reading.open(table.file) as file:
        try:
            batches = pyarrow.ipc.open_stream(file)
            needed = [*table.needed(batches.schema.names, partial(table.file.refuse, ""))]
            for batch in batches:
                batch.validate(full=True)  # its buffers are the file's own, and point where that says
                for row in _batch_rows(batch, needed):
                    number += 1
                    yield table.file.place(f"row {number}"), row
        except (ValueError, MemoryError, pyarrow.ArrowException):
            table.file.refuse("", "it cannot be read as Arrow", "check how it was written, and whether it is whole")


def _batch_rows(batch: Any, names: Sequence[str]) -> Iterator[_Cells]:
    for cells in zip(*(_values(batch.column(name)) for name in names), strict=True):
        yield dict(zip(names, cells, strict=True))


def _values(column: Any) -> Sequence[object]:
    """A column's cells as Python has them; strings as ``utf8`` has them, None for what has none."""
    import pyarrow

    def value(scalar: Any) -> object:
        try:
            return scalar.as_py()
        except (ValueError, OverflowError, pyarrow.ArrowException):
            return utf8(scalar.as_buffer().to_pybytes()) if hasattr(scalar, "as_buffer") else None

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return [value(scalar) for scalar in column]
