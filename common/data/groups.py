"""Held-out records with what is known of whom each is about, and the groups of people that follow from it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..printable import printable
from ..sources.columns import Columns
from ..sources.source import DataSource
from .record import Record
from .records import parse_records, read_records

# Columns that a held-out record may have beside its own.
AGE, SEX, RACE, LANGUAGE, DIAGNOSIS = TRAIT_COLUMNS = ("age", "sex", "race", "language", "diagnosis")
_BANDS: Final = ((18, "under 18"), (40, "18–39"), (65, "40–64"), (80, "65–79"), (math.inf, "80 and over"))
# A diagnosis by the share of patients who have it, at most.
_RARITIES: Final = ((0.02, "of at most 2 % of patients"), (0.1, "of 2–10 % of patients"), (1.0, "of over 10 %"))
_MOST_GROUPS: Final = 12
_LONGEST: Final = 40
OTHERS: Final = "others"


def held_out(source: DataSource | Path | str) -> DataSource:
    """The source of held-out records, whose tables may have ``TRAIT_COLUMNS`` beside those of records."""
    return DataSource.of(source).with_traits(TRAIT_COLUMNS)


def read_held_out(source: DataSource | Path | str) -> list[Record]:
    """Its records, of no patient who is protected, as ``read_records`` reads them. Raises DataError."""
    return read_records(held_out(source), similar="different")


def parse_held_out(name: str, rows: Iterable[Mapping[str, object]]) -> list[Record]:
    """The same of rows in memory. Raises DataError."""
    columns = Columns(patient="", content={}, where={}, is_named=False, traits=frozenset(TRAIT_COLUMNS))
    return parse_records(name, [columns.row(row) or {} for row in rows], similar="different")


def groups_of(records: Sequence[Record]) -> dict[str, list[str | None]]:
    """Each record's group, by each trait that any record has: None where it is not said.

    Ages in years are bands, a diagnosis is how many of these patients have it, and of any other trait the most frequent
    values are groups, and all others together one more.
    """
    found = {name: [record.traits.get(name) or None for record in records] for name in TRAIT_COLUMNS}
    named = {
        name: _rarity(values, records) if name == DIAGNOSIS else _merged([_group(name, value) for value in values])
        for name, values in found.items()
    }
    return {name: groups for name, groups in named.items() if any(group is not None for group in groups)}


def _group(trait: str, value: str | None) -> str | None:
    """A trait's value as it is shown; of a number of years, its band.

    >>> _group("age", "64.5"), _group("age", "80+"), _group("sex", " f\\n"), _group("sex", None)
    ('40–64', '80+', 'f', None)
    """
    if trait == AGE and value is not None:
        try:
            years = float(value)
        except ValueError:
            years = math.nan
        if 0 <= years < 150:
            return next(band for below, band in _BANDS if years < below)
    return printable(" ".join(value.split()))[:_LONGEST].strip() or None if value is not None else None


def _merged(values: list[str | None]) -> list[str | None]:
    counts = Counter(value for value in values if value is not None)
    shown = {value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_GROUPS]}
    return [value if value is None or value in shown else OTHERS for value in values]


def _rarity(values: list[str | None], records: Sequence[Record]) -> list[str | None]:
    patients: dict[str, set[str]] = {}
    for value, record in zip(values, records, strict=True):
        if value is not None:
            patients.setdefault(value, set()).add(record.patient_id)
    everyone = len({record.patient_id for record in records})
    return [
        None if value is None else next(said for most, said in _RARITIES if len(patients[value]) <= most * everyone)
        for value in values
    ]
