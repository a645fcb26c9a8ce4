"""Records of a site as its file holds them: JSONL, CSV or Parquet, every record checked before anything uses it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NoReturn, TypeGuard

from .identifiers import Similar, canonical, clashes, names_nobody
from .quarantine import Quarantine
from .rows import COLUMNS, KINDS, PATIENT_ID, Malformed, RecordFile, Rows, Source, has_surrogates

_LARGEST_EXACT_FLOAT: Final = 2.0**53
_CLASHES_NAMED: Final = 5
_ONE_KIND: Final = "keep one kind a file: text, prompt with completion, or messages"


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


@dataclass(frozen=True, kw_only=True)
class SetAsideContent:
    """What cannot be read: the record keeps its place, and nothing is learnt from it."""


Content = Text | PromptCompletion | Chat | SetAsideContent


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of one patient; ``position`` is its file's name with the line or row. Printing shows nothing else."""

    patient_id: str = field(repr=False)
    position: str
    content: Content = field(repr=False)


def read_records(
    file: Path | RecordFile, *, similar: Similar | None = None, quarantine: Quarantine | None = None
) -> list[Record]:
    """Every record of a ``.jsonl`` (``.ndjson``), ``.csv`` or ``.parquet`` file, in its order.

    A record has ``patient_id`` and either ``text``, or ``prompt`` and ``completion``, or ``messages`` (a list of
    ``role`` and ``content``; in CSV, that list as JSON). Patient ids lose surrounding whitespace, and a number is the
    same id as its decimal text. Raises DataError, which names the file and the line or row but never quotes from it,
    not even a column's name: in a CSV without a header that would be a record.

    Whatever casts doubt on *whose* the records are is refused: ids that are missing, also in words (``nan``, ``n/a``),
    columns or quotes that are not clear, and ids that differ in spelling alone (``identifiers.canonical``), unless
    ``similar`` says that these are the "same" patient, who then has the first of the spellings, or "different" ones.

    A record whose *content* alone cannot be read is refused, too, unless there is a ``quarantine``: it is listed there,
    and is a record with ``SetAsideContent``, or none where its line has no patient. A file of which most is so is
    refused all the same.
    """
    source = Source(file)
    return _parse_rows(source, source.rows(), similar, quarantine)


def check_beginning(file: Path | RecordFile) -> None:
    """Raises DataError where columns or first record show that ``read_records`` will refuse the file."""
    source = Source(file)
    first = next(iter(source.rows()), None)
    if first is None:
        _refuse_empty(source)
    _parse_row(source, *first)


def parse_records(
    name: str,
    rows: Iterable[Mapping[str, object]],
    *,
    similar: Similar | None = None,
    quarantine: Quarantine | None = None,
) -> list[Record]:
    """Records of rows in memory, with the fields that ``read_records`` describes; errors call them ``name``.

    Values may be numpy's, or of whatever else has ``tolist``.
    """
    numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return _parse_rows(Source(Path(name)), numbered, similar, quarantine)


def _parse_rows(source: Source, rows: Rows, similar: Similar | None, quarantine: Quarantine | None) -> list[Record]:
    parsed = [_parse_row(source, position, row) for position, row in rows]
    if not parsed:
        _refuse_empty(source)
    # Not the first record's: it would decide over all others.
    kinds = Counter(type(content) for _, _, content in parsed)
    del kinds[Malformed]
    kind, _ = kinds.most_common(1)[0] if kinds else (Malformed, 0)
    records: list[Record] = []
    malformed: list[tuple[str, Malformed]] = []
    for position, patient_id, content in parsed:
        if not isinstance(content, Malformed | kind):
            content = Malformed(what="holds another kind of record than most", fix=_ONE_KIND)
        if isinstance(content, Malformed):
            if quarantine is None:
                source.refuse(position, content.what, content.fix)
            malformed.append((position, content))
            quarantine.add(f"{source.path.name}, {position}", content.what)
            content = SetAsideContent()
        if patient_id is not None:
            records.append(Record(patient_id=patient_id, position=f"{source.path.name}, {position}", content=content))
    if 2 * len(malformed) > len(parsed):
        position, first = malformed[0]
        what = f"{first.what}, and most of the file cannot be used, for this or other reasons"
        source.refuse(position, what, first.fix)
    return _one_spelling_each(source, records, similar)


def _refuse_empty(source: Source) -> NoReturn:
    source.refuse("", "it holds no records", "give a file with at least one patient")


def _parse_row(
    source: Source, position: str, row: Mapping[str, object] | Malformed
) -> tuple[str, str | None, Content | Malformed]:
    """Its position, its patient (None where it is no row), and its content."""
    if isinstance(row, Malformed):
        return position, None, row
    return position, _patient_id(source, position, row), _content(row)


def _one_spelling_each(source: Source, records: list[Record], similar: Similar | None) -> list[Record]:
    """The records, whose patients are told apart as ``similar`` says."""
    if similar == "different":
        return records
    found = clashes(record.patient_id for record in records)
    if not found:
        return records
    if similar is None:
        place = f"{source.path.name}, "
        where = [record.position.removeprefix(place) for record in records]
        pairs = [f"{where[one]} and {where[other]}" for one, other in found[:_CLASHES_NAMED]]
        more = f", and {len(found) - _CLASHES_NAMED} more" if len(found) > _CLASHES_NAMED else ""
        source.refuse(
            "",
            f"patients' identifiers differ in spelling alone (case, hyphens, zeros, decimals, invisible characters): "
            f"{'; '.join(pairs)}{more}",
            "write each patient in one way, or say whether such identifiers are one patient's: similar_identifiers = "
            '"same" or "different" in site.toml, --similar-identifiers of a simulation',
        )
    first_of: dict[str, str] = {}
    return [
        replace(record, patient_id=first_of.setdefault(canonical(record.patient_id), record.patient_id))
        for record in records
    ]


def _patient_id(source: Source, position: str, row: Mapping[str, object]) -> str:
    if PATIENT_ID not in row:
        source.refuse(position, "has no patient_id", "give every record a patient_id (for CSV, in a header line)")
    value = _own(row[PATIENT_ID])
    patient_id = _parse_patient_id(value)
    if patient_id is None:
        what = f"has an empty or unusable patient_id ({type(value).__name__})"
        source.refuse(position, what, "give every record its patient's identifier, as text or as a whole number")
    if names_nobody(patient_id):
        what = "has a patient_id that stands for a missing one"
        source.refuse(position, what, "give every record its patient's identifier, or leave the record out")
    return patient_id


def _own(value: Any) -> object:
    """A value of numpy, or whatever else has ``tolist``, as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _parse_patient_id(value: Any) -> str | None:
    if isinstance(value, float | Decimal) and abs(float(value)) <= _LARGEST_EXACT_FLOAT and value % 1 == 0:
        value = int(value)  # a column of integers with gaps arrives as floats
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if _is_text(value) else None


def _content(row: Mapping[str, object]) -> Content | Malformed:
    fields = set(row) - {PATIENT_ID}
    if fields not in KINDS:
        return Malformed(what="lacks a field, or has one that is not known", fix=COLUMNS)
    if fields == {"messages"}:
        messages = _parse_messages(_own(row["messages"]))
        if messages is None:
            return Malformed(
                what="its messages are malformed", fix="give a list of {role, content}, none of them empty"
            )
        return Chat(messages=messages)
    texts: dict[str, str] = {}
    for name in sorted(fields, reverse=True):  # a prompt before its completion
        value = _own(row[name])
        if not _is_text(value):
            return Malformed(
                what=f"its {name} is empty, or not text in UTF-8", fix=f"give it a {name}, or leave the record out"
            )
        texts[name] = value
    return Text(**texts) if "text" in texts else PromptCompletion(**texts)


def _parse_messages(value: object) -> tuple[Turn, ...] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list | tuple) or not value:
        return None
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
            return None
        role, content = _own(turn["role"]), _own(turn["content"])
        if not _is_text(role) or not _is_text(content):
            return None
        messages.append(Turn(role=role, content=content))
    return tuple(messages)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string of more than whitespace that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and not has_surrogates(value)
