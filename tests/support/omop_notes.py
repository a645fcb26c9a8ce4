"""The table ``note`` of an OMOP CDM 5.4, in any database."""

import datetime
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, Date, DateTime, Integer, String, Text

DISCHARGE, RADIOLOGY = 44814637, 44814641
_DAY = datetime.date(2020, 2, 29)


def note_table(schema: str | None = None) -> sqlalchemy.Table:
    """The table as its DDL has it."""
    integers = ("encoding_concept_id", "language_concept_id")
    optional = ("provider_id", "visit_occurrence_id", "visit_detail_id", "note_event_field_concept_id")
    return sqlalchemy.Table(
        "note",
        sqlalchemy.MetaData(schema=schema),
        Column("note_id", Integer, primary_key=True, autoincrement=False),
        Column("person_id", Integer, nullable=False),
        Column("note_date", Date, nullable=False),
        Column("note_datetime", DateTime),
        Column("note_type_concept_id", Integer, nullable=False),
        Column("note_class_concept_id", Integer, nullable=False),
        Column("note_title", String(250)),
        Column("note_text", Text, nullable=False),
        *(Column(name, Integer, nullable=False) for name in integers),
        *(Column(name, Integer) for name in optional),
        Column("note_source_value", String(50)),
        Column("note_event_id", BigInteger),
    )


def note(note_id: int, person_id: int, text: str, **others: Any) -> dict[str, Any]:
    """A row of it."""
    concepts = {"note_type_concept_id": 32831, "note_class_concept_id": DISCHARGE}
    languages = {"encoding_concept_id": 32678, "language_concept_id": 4180186}
    said = {"note_id": note_id, "person_id": person_id, "note_text": text, "note_date": _DAY}
    return {**said, **concepts, **languages, **others}


def write_notes(url: sqlalchemy.URL, rows: Iterable[dict[str, Any]], *, schema: str | None = None) -> None:
    """Make the table, in a schema that is made, too, if one is named."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    table = note_table(schema)
    with engine.begin() as connection:
        if schema is not None:
            connection.execute(sqlalchemy.text(f"CREATE SCHEMA {schema}"))
        table.create(connection)
        connection.execute(table.insert(), list(rows))
