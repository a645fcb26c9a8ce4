"""Records of a site as its source holds them, every one checked before anything uses it."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NoReturn, TypeGuard

from ..sources.identifiers import Similar, canonical, clashes, names_nobody
from ..sources.rows import (
    COLUMNS,
    KINDS,
    OTHER_IDS,
    PATIENT_ID,
    SAY_ENCODING,
    TRAITS,
    UNDECODABLE,
    Malformed,
    Rows,
    has_surrogates,
    refuse,
)
from ..sources.source import DataSource, read_rows
from .quarantine import Quarantine
from .record import Chat, Content, PromptCompletion, Record, SetAsideContent, Text, Turn

_LARGEST_EXACT_FLOAT: Final = 2.0**53
# No note is as long, and a tokenizer takes some hundred bytes for each character: the machine's memory would decide.
_MOST_CHARACTERS: Final = 1 << 23
_CLASHES_NAMED: Final = 5


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What stands at a place of a source: a record's patient (None where there is no row) and its content."""

    position: str
    patient_id: str | None = field(repr=False)
    content: Content | Malformed = field(repr=False)
    other_ids: tuple[str, ...] = field(default=(), repr=False)
    traits: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_records(
    source: DataSource | Path, *, similar: Similar | None = None, quarantine: Quarantine | None = None
) -> list[Record]:
    """Every record of a source, in its order; ``RecordChecks`` says what is refused. Raises DataError.

    A record has ``patient_id`` and either ``text``, or ``prompt`` and ``completion``, or ``messages`` (a list of
    ``role`` and ``content``; in CSV, that list as JSON). Patient ids lose surrounding whitespace, and a number is the
    same id as its decimal text. Errors name the file and the line or row but never quote from it, not even a column's
    name: in a CSV without a header that would be a record.
    """
    source = DataSource.of(source)
    return _records(source.name, parsed(read_rows(source, similar=similar), source.patient), similar, quarantine)


@dataclass(frozen=True, kw_only=True)
class PatientCounts:
    """How many records each patient has; ``other_ids`` are those that the source knows beside, of who has some."""

    records: Counter[str]
    other_ids: Mapping[str, Sequence[str]]

    @property
    def identifiers(self) -> list[str]:
        """All that the patients are known by."""
        return [one for patient in self.records for one in (patient, *self.other_ids.get(patient, ()))]


def count_records(source: DataSource, similar: Similar | None, opted_out: Collection[str] = ()) -> PatientCounts:
    """How many records each patient of a source has, of whom no canonical form is among those who ``opted_out``.

    No more than one record is held. Raises DataError.
    """
    checks = RecordChecks(source.name, similar, Quarantine())
    admitted = (checks.admit(one) for one in parsed(read_rows(source, similar=similar), source.patient))
    written = Counter(record.patient_id for record in admitted if record is not None)
    counts: Counter[str] = Counter()
    findings = checks.finish()
    for spelling, patient in findings.spellings.items():
        if not any(canonical(one) in opted_out for one in (patient, *findings.other_ids.get(patient, ()))):
            counts[patient] += written[spelling]
    return PatientCounts(records=counts, other_ids=findings.other_ids)


def check_beginning(source: DataSource | Path) -> None:
    """Raises DataError where columns or first record show that ``read_records`` will refuse the source."""
    source = DataSource.of(source)
    if next(parsed(read_rows(source), source.patient), None) is None:
        _refuse_empty(source.name)


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
    return _records(name, parsed(named_rows(name, rows)), similar, quarantine)


def named_rows(name: str, rows: Iterable[Mapping[str, object]]) -> Rows:
    """Rows in memory, with their places."""
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))


def parsed(rows: Rows, patient_column: str | None = None) -> Iterator[Parsed]:
    """Each row's record, one after another. Raises DataError where it cannot be told whose one is.

    ``patient_column`` is what the source calls the column of patients' identifiers, if not by its name.
    """
    for position, row in rows:
        if isinstance(row, Malformed):
            yield Parsed(position=position, patient_id=None, content=row)
        else:
            others, traits = row.get(OTHER_IDS), row.get(TRAITS)
            yield Parsed(
                position=position,
                patient_id=_patient_id(position, row, patient_column or PATIENT_ID),
                content=_content(row),
                other_ids=others if isinstance(others, tuple) else (),
                traits=traits if isinstance(traits, dict) else {},
            )


class RecordChecks:
    """What a source's records have to be together; told of each in turn, it holds patients and counts, no record.

    Whatever casts doubt on *whose* the records are is refused: ids that are missing, also in words (``nan``, ``n/a``),
    columns or quotes that are not clear, and ids that differ in spelling alone (``identifiers.canonical``), unless
    ``similar`` says that these are the "same" patient, who then has the least of the spellings, or "different" ones.

    A record whose *content* alone cannot be read is refused, too, unless there is a ``quarantine``: it is listed there,
    and is a record with ``SetAsideContent``, or none where its line has no patient. A source of which most is so is
    refused all the same. Records may be of several kinds: were one kind chosen, one record could decide over others.
    """

    def __init__(self, name: str, similar: Similar | None, quarantine: Quarantine | None) -> None:
        self._name = name
        self._similar = similar
        self._quarantine = quarantine
        self._count = 0
        self._malformed = 0
        self._first: tuple[str, Malformed] | None = None
        self._places: dict[str, str] = {}  # of each patient's first record
        self._others: dict[str, set[str]] = {}

    def admit(self, one: Parsed) -> Record | None:
        """The record, or None where its place has no patient. Raises DataError where nothing can be set aside."""
        self._count += 1
        content = one.content
        if isinstance(content, Malformed):
            self._set_aside(one.position, content)
            content = SetAsideContent()
        if one.patient_id is None:
            return None
        self._places.setdefault(one.patient_id, one.position)
        if one.other_ids:
            self._others.setdefault(one.patient_id, set()).update(one.other_ids)
        return Record(
            patient_id=one.patient_id,
            position=one.position,
            content=content,
            other_ids=one.other_ids,
            traits=one.traits,
        )

    def finish(self) -> "Findings":
        """What follows once all were told. Raises DataError."""
        if not self._count:
            _refuse_empty(self._name)
        if self._first and 2 * self._malformed > self._count:
            place, first = self._first
            refuse(place, f"{first.what}, and most of the source cannot be used, for this or other reasons", first.fix)
        spellings = self._spellings()
        other_ids: dict[str, set[str]] = {}
        for spelling, ids in self._others.items():
            other_ids.setdefault(spellings[spelling], set()).update(ids)
        return Findings(spellings=spellings, other_ids={one: sorted(ids) for one, ids in other_ids.items()})

    def _set_aside(self, place: str, found: Malformed) -> None:
        if self._quarantine is None:
            refuse(place, found.what, found.fix)
        self._malformed += 1
        self._first = self._first or (place, found)
        self._quarantine.add(place, found.what)

    def _spellings(self) -> Mapping[str, str]:
        """Each patient's identifier by the spellings of it."""
        patients = list(self._places)
        if self._similar == "different":
            return {patient: patient for patient in patients}
        found = clashes(patients)
        if found and self._similar is None:
            pairs = [
                f"{self._places[patients[one]]} and {self._places[patients[other]]}"
                for one, other in found[:_CLASHES_NAMED]
            ]
            more = f", and {len(found) - _CLASHES_NAMED} more" if len(found) > _CLASHES_NAMED else ""
            refuse(
                self._name,
                f"patients' identifiers differ in spelling alone (case, hyphens, zeros, decimals, invisible "
                f"characters): {'; '.join(pairs)}{more}",
                "write each patient in one way, or say whether such identifiers are one patient's: similar_identifiers "
                '= "same" or "different" in site.toml, --similar-identifiers of a simulation',
            )
        least: dict[str, str] = {}
        for patient in sorted(patients):
            least.setdefault(canonical(patient), patient)
        return {patient: least[canonical(patient)] for patient in patients}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What records are together: each patient's identifier by the ``spellings`` of it.

    ``other_ids`` are those that their source knows beside it, of patients who have some.
    """

    spellings: Mapping[str, str]
    other_ids: Mapping[str, Sequence[str]]


def _records(
    name: str, found: Iterable[Parsed], similar: Similar | None, quarantine: Quarantine | None
) -> list[Record]:
    checks = RecordChecks(name, similar, quarantine)
    records = [record for one in found if (record := checks.admit(one)) is not None]
    findings = checks.finish()
    patients = ((record, findings.spellings[record.patient_id]) for record in records)
    others = findings.other_ids
    return [replace(record, patient_id=one, other_ids=tuple(others.get(one, ()))) for record, one in patients]


def _refuse_empty(name: str) -> NoReturn:
    refuse(name, "it holds no records", "give a source with at least one patient")


def _patient_id(position: str, row: Mapping[str, object], called: str) -> str:
    if PATIENT_ID not in row:
        if "resourceType" in row:
            refuse(position, "is a resource of FHIR", 'say in [data] that it is an export of FHIR: format = "fhir"')
        refuse(position, f"has no {called}", f"give every record a {called} (for CSV, in a header line)")
    value = _own(row[PATIENT_ID])
    patient_id = _parse_patient_id(value)
    if patient_id is None and _is_undecodable(value):
        refuse(position, f"has a {called} that {UNDECODABLE}", SAY_ENCODING)
    if patient_id is None:
        what = f"has an empty or unusable {called} ({type(value).__name__})"
        refuse(position, what, "give every record its patient's identifier, as text or as a whole number")
    if names_nobody(patient_id):
        what = f"has a {called} that stands for a missing one"
        refuse(position, what, "give every record its patient's identifier, or leave the record out")
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
    fields = set(row) - {PATIENT_ID, OTHER_IDS, TRAITS}
    if fields not in KINDS:
        return Malformed(what="lacks a field, or has one that is not known", fix=COLUMNS)
    if fields == {"messages"}:
        messages = _parse_messages(_own(row["messages"]))
        if messages is None:
            return Malformed(
                what="its messages are malformed", fix="give a list of {role, content}, none of them empty"
            )
        return _not_too_long(Chat(messages=messages))
    texts: dict[str, str] = {}
    for name in sorted(fields, reverse=True):  # a prompt before its completion
        value = _own(row[name])
        if _is_undecodable(value):
            return Malformed(what=f"its {name} {UNDECODABLE}", fix=SAY_ENCODING)
        if not _is_text(value):
            return Malformed(what=f"its {name} is empty, or no text", fix=f"give it a {name}, or leave the record out")
        texts[name] = value
    return _not_too_long(Text(**texts) if "text" in texts else PromptCompletion(**texts))


def size_of(content: Content) -> int:
    """How many characters it has."""
    match content:
        case Text(text=text):
            return len(text)
        case PromptCompletion(prompt=prompt, completion=completion):
            return len(prompt) + len(completion)
        case Chat(messages=messages):
            return sum(len(turn.content) for turn in messages)
    return 0


def _not_too_long(content: Content) -> Content | Malformed:
    if size_of(content) <= _MOST_CHARACTERS:
        return content
    what = f"is longer than {_MOST_CHARACTERS:,} characters"
    return Malformed(what=what, fix="divide it into several records, or leave it out")


def _is_undecodable(value: object) -> bool:
    return isinstance(value, str) and has_surrogates(value)


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
