"""Rows of a source, each with its place, by the names that records have; and the one way to refuse a source."""

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, get_args

from ..errors import DataError

PATIENT_ID: Final = "patient_id"
# In a row, other identifiers of its patient, as a tuple: nobody writes it, and no file can.
OTHER_IDS: Final = "\0other_ids"
# In a row, what is known of whom it is about, by the names of columns: of held-out records alone.
TRAITS: Final = "\0traits"
KINDS: Final = ({"text"}, {"prompt", "completion"}, {"messages"})
COLUMNS: Final = "have patient_id and exactly one of: text; prompt and completion; messages"
Column = Literal["patient_id", "text", "prompt", "completion", "messages"]
KNOWN: Final = frozenset(get_args(Column))
# What is said of bytes that their encoding does not have.
UNDECODABLE: Final = "is not of the encoding that is expected"
SAY_ENCODING: Final = 'save the file as UTF-8, or say what it is: encoding = "cp1252" (simulate: --encoding)'


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """Why a row or its content cannot be used, and what to do: without a word of it."""

    what: str
    fix: str


# A row by the names of records, with its place, as "notes.jsonl, line 7"; Malformed where a place holds none.
Rows = Iterable[tuple[str, Mapping[str, object] | Malformed]]


def refuse(place: str, what: str, fix: str) -> NoReturn:
    """Raise the DataError of what stands at ``place``; ``from None``, for a reader's own exception may quote it."""
    raise DataError(f"{place}: {what}", why="a study trains only on data that was read whole", fix=fix) from None


def codec(encoding: str) -> str:
    """The codec of an encoding, by any of its names; that of UTF-8 passes over a byte order mark.

    Raises LookupError.

    >>> codec("UTF8"), codec("latin-1")
    ('utf-8-sig', 'iso8859-1')
    """
    name = codecs.lookup(encoding).name
    return "utf-8-sig" if name == "utf-8" else name


def utf8(data: bytes) -> str:
    """Bytes as text; those that are not UTF-8 are lone surrogates, which no text of a record may hold."""
    return data.decode("utf-8", "surrogateescape")


def has_surrogates(text: str) -> bool:
    """Whether it holds what UTF-8 cannot: bytes of another encoding, or halves of pairs, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
