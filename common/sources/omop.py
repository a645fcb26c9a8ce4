"""An OMOP CDM's notes (version 5.4, table ``note``), from a database or from an export of its tables."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import Field, model_validator

from ..schema import Section
from .columns import Columns
from .database import Database
from .files import Reading
from .rows import Rows, refuse

if TYPE_CHECKING:
    import sqlalchemy

    from .source import DataSource

_NOTE: Final = "note"
_NUMBER: Final = "note_id"
_DATE: Final = "note_date"


_Date = Annotated[datetime.date, Field(strict=False)]  # for settings that were kept as JSON


class Omop(Section):
    """Where an OMOP CDM is: its database, whose password no setting holds, and which of its notes are read."""

    url: str
    cdm_schema: str | None = Field(default=None, alias="schema")
    password_file: Annotated[Path, Field(strict=False)] | None = None
    first_date: _Date | None = None
    last_date: _Date | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.database()
        return self

    def below(self, folder: Path) -> Self:
        """The same, its paths starting from ``folder``."""
        changed: dict[str, Any] = {}
        if self.password_file is not None:
            changed["password_file"] = folder / self.password_file
        database = self.database()
        if database.file is not None:
            changed["url"] = str(database.url.set(database=str(folder / database.file)))
        return self.model_copy(update=changed)

    @property
    def files(self) -> tuple[Path, ...]:
        """The database's file, if it is one."""
        file = self.database().file
        return () if file is None else (file,)

    @property
    def found(self) -> tuple[Path, ...]:
        """The database's file and its log of changes, if it has one."""
        log = self.database().log
        return self.files if log is None else (*self.files, log)

    @property
    def place(self) -> str:
        """Database and schema, whoever asks for them and how."""
        url = self.database().url
        host = url.host or url.query.get("host") or "this machine"
        return f"{host}:{url.port or 5432}/{url.database} {self.cdm_schema or ''}".strip()

    @property
    def has_days(self) -> bool:
        """Whether it names a first or a last day."""
        return bool(self.first_date or self.last_date)

    def within(self, day: "sqlalchemy.ColumnClause[datetime.date]") -> Iterator["sqlalchemy.ColumnElement[bool]"]:
        """What a note's ``day`` must fulfil."""
        if self.first_date is not None:
            yield day >= self.first_date
        if self.last_date is not None:  # where days have times, too, to the last of them
            yield day < self.last_date + datetime.timedelta(days=1)

    def database(self) -> Database:
        """The database. Raises StudyError where the URL is none, or holds a password."""
        return Database.at(self.url, self.password_file)


def omop_rows(source: "DataSource", reading: Reading) -> Rows:
    """The notes of an OMOP CDM, in a database or in files. Raises DataError."""
    from .exports import exported_notes

    if source.omop is None:
        return exported_notes(source, reading)
    return _stored(source.omop, Columns.of(source.with_columns(patient="person_id", text="note_text")), reading)


def _where(columns: Columns) -> Iterator["sqlalchemy.ColumnElement[bool]"]:
    """What ``Columns.row`` keeps, for the database to send no more."""
    import sqlalchemy

    for name, values in columns.where.items():
        text = sqlalchemy.cast(sqlalchemy.column(name), sqlalchemy.Text)
        yield text.in_([*values, *(f"{value}.0" for value in values)])


def _stored(omop: Omop, columns: Columns, reading: Reading) -> Rows:
    """The notes of the table ``note``, in the order of ``note_id`` from a server; ``reading`` counts them."""
    import sqlalchemy

    database = omop.database()
    number: sqlalchemy.ColumnClause[Any] = sqlalchemy.column(_NUMBER)
    day = sqlalchemy.column(_DATE, sqlalchemy.Date)
    wanted = [number, *map(sqlalchemy.column, sorted(columns.names - {_NUMBER}))]
    note = sqlalchemy.table(_NOTE, *wanted, schema=database.schema(omop.cdm_schema))
    conditions = [*omop.within(day), *_where(columns)]
    with database.connected() as connection:
        database.check(connection, note, [*wanted, *([day] if omop.has_days else [])])
        count = sqlalchemy.select(sqlalchemy.func.count()).select_from(note).where(*conditions)
        found = connection.execute(count).scalar_one()
        if conditions and not found:
            refuse(database.name, "where and days leave none of the notes", "compare them with what the table holds")
        reading.total += found
        query = sqlalchemy.select(note).where(*conditions).order_by(*database.ordered_by(number))
        for position, row in enumerate(connection.execute(query).mappings(), start=1):
            note_id = row[_NUMBER]
            place = f"{_NUMBER} {note_id}" if isinstance(note_id, int) else f"row {position}"
            reading.done += 1
            if (cells := columns.row({str(name): value for name, value in row.items()})) is not None:
                yield f"{note.fullname}, {place}", cells
