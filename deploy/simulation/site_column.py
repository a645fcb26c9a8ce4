"""Several sites' records in one table, told apart by a column."""

import re
import unicodedata
from collections.abc import Collection
from typing import Final

from pydantic import TypeAdapter, ValidationError

from ...common.crypto.identity import Name
from ...common.errors import StudyError
from ...common.sources.columns import as_text, comparable
from ...common.sources.rows import PATIENT_ID, Malformed, refuse
from ...common.sources.source import DataSource, read_rows

_MOST: Final = 1000


def sites_of(table: DataSource, column: str, stated: Collection[str]) -> dict[str, DataSource]:
    """A source for each site: the rows of ``table`` whose ``column`` has its value; the site has the value's name.

    Raises DataError, also where a value makes no name, two make one, or a name is not among those for which anything
    was ``stated``, if there are any; no message has a value, for another column may have been meant.
    """
    places: dict[str, str] = {}
    for place, row in read_rows(_of_column(table, column)):
        if isinstance(row, Malformed):
            continue
        places.setdefault(comparable(as_text(row.get(PATIENT_ID))), place)
        if len(places) > _MOST:
            refuse(
                place, f"{column} has more than {_MOST:,} values", "name the column of the site, not of its patients"
            )
    sites: dict[str, DataSource] = {}
    first: dict[str, str] = {}
    for value, place in places.items():
        name = _name(value)
        if name is None:
            refuse(place, f"{column} has no value that makes a site's name", "give each row the name of its site")
        if name in sites:
            refuse(place, f"{column} makes the same site's name as in {first[name]}", "write each site in one way")
        if stated and name not in stated:
            what = f"no nominal units are stated for the site that {column} names"
            refuse(place, what, "add --nominal-units SITE=N, or leave its rows out: where = { … }")
        first[name] = place
        sites[name] = table.model_copy(update={"where": {**table.where, column: (value,)}})
    return sites


def _of_column(table: DataSource, column: str) -> DataSource:
    """A source of the values of one column, in the place of patients' identifiers."""
    if table.own_format == "fhir":
        raise StudyError(
            "site_column is given, and an export of FHIR has no columns",
            why="a column's values say which site's a row is",
            fix="give each site its own export: [simulation.data]",
        )
    bare = dict.fromkeys(("prompt", "completion", "messages", "crosswalk"))
    return table.model_copy(update={**bare, "patient": column, "text": column})


def _name(value: str) -> str | None:
    """What a site with this value is called.

    >>> [_name(value) for value in ("St. Mary's (West)", "Zürich", "7.0", "", "東京")]
    ['st-mary-s-west', 'zurich', '7-0', None, None]
    """
    letters = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
    try:
        return TypeAdapter(Name).validate_python(re.sub("[^a-z0-9]+", "-", letters).strip("-"))
    except ValidationError:
        return None
