"""The columns that records are made of, by their names or by templates over them; and which rows are read at all."""

import math
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Self

from .rows import COLUMNS, KINDS, KNOWN, PATIENT_ID, TRAITS, utf8

if TYPE_CHECKING:
    from .source import DataSource

# Raises the DataError of a table's header: what is wrong with it, and what to do.
Refuse = Callable[[str, str], NoReturn]
_CONTENT: Final = KNOWN - {PATIENT_ID}
_PANDAS_INDEX: Final = "__index_level_"
_NAME_THEM: Final = 'name yours in [data], as patient = "subject_id" with text = "note" (simulate: --column)'


@dataclass(frozen=True, kw_only=True)
class Template:
    """A column; or text with columns in braces, whose values stand there as text, those that are missing as nothing."""

    written: str
    pieces: tuple[tuple[str, str], ...]  # some text, and the column after it, or ""
    is_column: bool

    @classmethod
    def parse(cls, written: str) -> Self:
        """Raises ValueError.

        >>> Template.parse("Age {age}: {{}}").of({"age": 7.0}), Template.parse("note").of({"note": None})
        ('Age 7: {}', None)
        """
        if not set(written) & set("{}"):
            return cls(written=written, pieces=(("", written),), is_column=True)
        pieces = []
        try:
            for text, name, form, conversion in string.Formatter().parse(written):
                if name == "" or form or conversion:
                    raise ValueError
                pieces.append((text, name or ""))
        except ValueError:
            raise ValueError(
                "braces are around names of columns, as {findings}, and doubled where they are text"
            ) from None
        if not any(name for _, name in pieces):
            raise ValueError("names no column in braces")
        return cls(written=written, pieces=tuple(pieces), is_column=False)

    @property
    def names(self) -> set[str]:
        """The columns that it has."""
        return {name for _, name in self.pieces if name}

    def of(self, cells: Mapping[str, object]) -> object:
        """A column's value; or the whole text, None where no column has anything."""
        if self.is_column:
            return cells.get(self.written)
        found = [(text, as_text(cells.get(name))) for text, name in self.pieces]
        return "".join(text + value for text, value in found) if any(value.strip() for _, value in found) else None


def as_text(value: object) -> str:
    """A cell as text, as CSV would have it; a whole number has no decimals, for a column with gaps makes floats of all.

    Bytes are UTF-8.

    >>> [as_text(value) for value in (7, 7.0, 7.5, True, None, float("nan"), "NA", b"NA")]
    ['7', '7', '7.5', 'true', '', '', 'NA', 'NA']
    """
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case bytes() | bytearray() | memoryview():
            return utf8(bytes(value))
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a source calls the columns of records; ``content`` is empty where they have their own names.

    Where it names none at all, a table has the columns of records and no other but ``traits``, which may be missing.
    """

    patient: str
    content: Mapping[str, Template]
    where: Mapping[str, Collection[str]]
    is_named: bool
    traits: frozenset[str] = frozenset()

    @classmethod
    def of(cls, source: "DataSource") -> Self:
        """Those of a source."""
        named = source.named_columns
        content: dict[str, Template] = {}
        for kind in KINDS if named else ():
            if kind & set(named):
                content = {name: Template.parse(named.get(name, name)) for name in kind}
        return cls(
            patient=source.patient or PATIENT_ID,
            content=content,
            where={name: set(map(comparable, values)) for name, values in source.where.items()},
            is_named=bool(source.patient or named or source.where),
            traits=source.traits,
        )

    @property
    def names(self) -> set[str]:
        """The columns that it names."""
        return {self.patient, *self.where}.union(*(template.names for template in self.content.values()))

    def needed(self, header: Sequence[str], refuse: Refuse) -> Collection[str]:
        """The names of a table's header that are read. Calls ``refuse`` unless records can be made of them."""
        if not self.is_named:
            _check_own(header, self.traits, refuse)
            return header
        needed = self.names
        for name in sorted(needed - set(header)):
            refuse(f"no column is called {name}", f"compare the names that you gave with the header; or {_NAME_THEM}")
        if not self.content:
            kinds = [kind for kind in KINDS if kind <= set(header)]
            if len(kinds) != 1:
                what = "there are those of two kinds of records" if kinds else "a column is missing"
                refuse(what, f"{COLUMNS}; or {_NAME_THEM}")
            needed |= kinds[0]
        needed |= self.traits & set(header)
        for name in sorted(needed):
            if header.count(name) > 1:
                refuse(f"two columns have one name: {name}", "give each column one name")
        return needed

    def row(self, cells: Mapping[str, object]) -> Mapping[str, object] | None:
        """The row by the names of records; None where it is not among those that are read."""
        if not self.is_named:
            return self._apart(cells)
        if any(comparable(as_text(cells.get(name))) not in values for name, values in self.where.items()):
            return None
        row = {PATIENT_ID: cells[self.patient]} if self.patient in cells else {}
        row |= {name: cells[name] for name in self.traits if name in cells}
        if not self.content:
            return self._apart(row | {name: cells[name] for name in _CONTENT if name in cells})
        for name, template in self.content.items():
            if not template.is_column or template.written in cells:
                row[name] = template.of(cells)
        return self._apart(row)

    def _apart(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """The row, whose traits are no fields of a record."""
        if not self.traits:
            return row
        kept = {name: value for name, value in row.items() if name not in self.traits}
        return kept | {TRAITS: {name: as_text(row[name]).strip() for name in sorted(self.traits) if name in row}}


def comparable(value: str) -> str:
    """A value as ``where`` compares it: a program that made floats of whole numbers may have written them, too."""
    return value.removesuffix(".0")


def _check_own(header: Sequence[str], traits: Collection[str], refuse: Refuse) -> None:
    """Columns of a table that are not named are told by number: in a CSV without a header, a name would be a record."""
    if len(set(header)) != len(header):
        refuse("two columns have one name", "give each column one name")
    if PATIENT_ID not in header:
        refuse(
            "no column is called patient_id",
            f"give every record a patient_id (for CSV, in a header line), or {_NAME_THEM}",
        )
    extra = [number for number, name in enumerate(header, start=1) if name not in {*KNOWN, *traits}]
    if extra:
        some = ", ".join(map(str, extra[:10])) + (", …" if len(extra) > 10 else "")
        numbered = f"of {len(header)}, {len(extra)} too many (number {some})"
        for number in extra:
            if not header[number - 1] or header[number - 1].startswith(_PANDAS_INDEX):
                what = f"column {number} has no name, as where pandas writes its index"
                refuse(
                    f"{what}: {numbered}", f"leave it out (index=False), or {_NAME_THEM}, which leaves out the others"
                )
        what = f"not all columns are known: {numbered}"
        refuse(what, f"{_NAME_THEM}, which leaves out the others; or leave them out yourself: {COLUMNS}")
    if set(header) - {PATIENT_ID, *traits} not in KINDS:
        refuse("a column is missing, or there are those of two kinds of records", f"{COLUMNS}; or {_NAME_THEM}")
