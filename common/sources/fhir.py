"""FHIR R4 exports as bulk NDJSON: each document, report or composition with a text is a row of its patient."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, Literal, Self, get_args

from pydantic import Field

from ..errors import DataError
from ..schema import Section
from .attachments import Attachments
from .binaries import BINARY, Binaries
from .elements import Element, ElementError, object_of, objects_of, resource_of, text_of
from .fhir_references import PATIENT, Link, links_of, one_identifier, patient_of
from .files import LONGEST, Reading, SourceFile, found_files
from .identifiers import Similar, canonical
from .markup import html_text
from .rows import OTHER_IDS, PATIENT_ID, Rows, refuse

if TYPE_CHECKING:
    from .source import DataSource

ENDINGS: Final = (".ndjson", ".jsonl")
# What a line says that it is before anything else, as servers write it: one of another type need not be parsed.
_STATED: Final = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"(\w+)"')

Resource = Literal["DocumentReference", "DiagnosticReport", "Composition"]
# All that FHIR has for the three, but entered-in-error: nobody's record says what such a note says.
Status = Literal[
    "current",
    "superseded",
    "registered",
    "partial",
    "preliminary",
    "final",
    "amended",
    "corrected",
    "appended",
    "cancelled",
    "unknown",
]


class FhirSettings(Section):
    """Which resources of an export are notes.

    ``status`` is what ``status``, and ``docStatus`` if there is one, may be. ``types`` keeps those whose type, code or
    category has one of these codes, ``system|code``, displays or texts; without it, all are kept. ``attachments`` is
    the folder that attachments' files lie below, if it is not that of the file that names them. ``leave_out`` are
    content types of attachments, or patterns of them, that are passed over instead of being set aside.
    """

    resources: tuple[Resource, ...] = Field(default=get_args(Resource), min_length=1, strict=False)
    status: tuple[Status, ...] = Field(
        default=("current", "final", "amended", "corrected", "appended"), min_length=1, strict=False
    )
    types: tuple[str, ...] = Field(default=(), strict=False)
    attachments: Annotated[Path, Field(strict=False)] | None = None
    leave_out: tuple[str, ...] = Field(default=(), strict=False)

    def below(self, folder: Path) -> Self:
        """The settings whose paths start from ``folder``."""
        return self.model_copy(update={"attachments": folder / self.attachments} if self.attachments else {})

    @property
    def files(self) -> tuple[Path, ...]:
        """The folder that is read from beside the export."""
        return (self.attachments,) if self.attachments else ()


def is_export(named: Sequence[Path]) -> bool:
    """Whether the first of all files of NDJSON begins with a resource."""
    with suppress(DataError):  # which its reader will meet, too
        first = next((file for file in found_files(named, ENDINGS) if file.ending == ENDINGS[0]), None)
        if first is not None:
            with Reading().open(first) as lines:
                return bool(_kind(lines.readline()))
    return False


def fhir_rows(source: "DataSource", reading: Reading, similar: Similar | None = None) -> Rows:
    """The notes of an export, in the order of its files and lines; a resource that cannot be used is Malformed.

    Files are read twice, first for links between patients and for where each Binary is, wherever these stand.
    Links join identifiers in any spelling, unless ``similar`` says that these are "different" patients'. Raises
    DataError where such a link cannot be read, or no resource is a note.
    """
    files = found_files(source.files, ENDINGS)
    reading.expect([*files, *files])
    binaries = Binaries()
    links = (link for file in files for link in _links(file, reading, binaries))
    whose = _whose(source, links, similar)
    passed_over: Counter[str] = Counter()
    is_empty = True
    for file in files:
        for row in _rows(source, file, reading, whose, binaries, passed_over):
            is_empty = False
            yield row
    if is_empty and passed_over:
        told = ", ".join(f"{count} {reason}" for reason, count in passed_over.most_common())
        what = f"it holds no note that is asked for (resources: {told})"
        fix = "compare [data.fhir] with what was exported; of a Bundle, write the resources, one on each line"
        refuse(source.name, what, fix)


def _whose(
    source: "DataSource", links: Iterable[Link], similar: Similar | None
) -> Callable[[str], tuple[str, tuple[str, ...]]]:
    """A patient's identifier by each that is linked to it, with the others that are known.

    A crosswalk says first whose the linked ones are.
    """
    from .crosswalk import Crosswalk

    crosswalk = Crosswalk.read(source.crosswalk, source.encoding) if source.crosswalk else Crosswalk({})
    own, form = crosswalk.patient, str if similar == "different" else canonical
    patients = one_identifier(((own(one), own(other), kind) for one, other, kind in links), form)
    linked: dict[str, tuple[str, ...]] = {}
    for identifier, patient in patients.items():
        linked[patient] = (*linked.get(patient, ()), identifier, *crosswalk.others(identifier))

    @functools.cache  # for forms take their time
    def whose(identifier: str) -> tuple[str, tuple[str, ...]]:
        patient = patients.get(form(own(identifier)), own(identifier))
        return patient, linked.get(patient) or crosswalk.others(patient)

    return whose


def _links(file: SourceFile, reading: Reading, binaries: Binaries) -> Iterator[Link]:
    """The links of a file's patients; Binaries are noted on the way. Raises DataError where a link names nobody."""
    with reading.open(file) as lines:
        offset = 0
        for number, line in _lines(file, lines):
            begins, offset = offset, offset + len(line)
            kind, resource = _kind(line), None
            if kind == BINARY:
                binaries.add(line, file, begins if lines.seekable() else None)
            if kind not in (PATIENT, "") or b'"link"' not in line:
                continue
            try:
                resource = resource_of(line)
                if resource.get("resourceType") == PATIENT:
                    yield from links_of(resource)
            except ElementError as error:
                if kind or resource:  # what may be of any type is set aside later
                    file.refuse(f"line {number}", error.malformed.what, error.malformed.fix)


def _lines(file: SourceFile, lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, one held at a time. Raises DataError where one is too long."""
    number = 0
    while line := lines.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            file.refuse(f"line {number}", "is too long", "write one resource a line, each of less than 256 MiB")
        yield number, line


def _kind(line: bytes) -> str:
    """The type that a line states before anything else, "" where it does not."""
    stated = _STATED.match(line)
    return stated[1].decode() if stated else ""


def _rows(
    source: "DataSource",
    file: SourceFile,
    reading: Reading,
    whose: Callable[[str], tuple[str, tuple[str, ...]]],
    binaries: Binaries,
    passed_over: Counter[str],
) -> Rows:
    settings = source.fhir or FhirSettings()
    attachments = Attachments(
        folder=settings.attachments or file.path.parent,
        binaries=binaries,
        encoding=source.encoding,
        leave_out=frozenset(kind.lower() for kind in settings.leave_out),
    )
    types = {name.casefold() for name in settings.types}
    with reading.open(file) as lines:
        for number, line in _lines(file, lines):
            kind = _kind(line)
            if line.isspace() or kind not in ("", *settings.resources):
                passed_over["of another resourceType"] += bool(kind)
                continue
            place = file.place(f"line {number}")
            try:
                resource = resource_of(line)
                if reason := _passed_over(resource, settings, types):
                    passed_over[reason] += 1
                elif (text := _text(resource, attachments)) is None:
                    passed_over["without a text"] += 1
                else:
                    patient, others = whose(patient_of(resource))
                    yield place, {PATIENT_ID: patient, OTHER_IDS: others, "text": text}
            except ElementError as error:
                yield place, error.malformed


def _passed_over(resource: Element, settings: FhirSettings, types: set[str]) -> str:
    """Why a resource is none that is asked for; "" for one that is."""
    if resource.get("resourceType") not in settings.resources:
        return "of another resourceType"
    status = text_of(resource, "status")
    if not status:
        raise ElementError("has no status", "export it: without one, nobody knows whether the note is to be believed")
    if not {status, text_of(resource, "docStatus") or status} <= {*settings.status}:
        return "with another status"
    return "of another type" if types and types.isdisjoint(_names(resource)) else ""


def _names(resource: Element) -> Iterator[str]:
    """What a resource's type, code and category are called, all of it in lower case."""
    for concept in (object_of(resource, "type"), object_of(resource, "code"), *objects_of(resource, "category")):
        yield text_of(concept, "text").casefold()
        for coding in objects_of(concept, "coding"):
            code = text_of(coding, "code")
            for name in (code, f"{text_of(coding, 'system')}|{code}", text_of(coding, "display")):
                yield name.casefold()


def _text(resource: Element, attachments: Attachments) -> str | None:
    """The text of a resource, None where it has none."""
    match resource["resourceType"]:
        case "DocumentReference":
            documents = [object_of(one, "attachment") for one in objects_of(resource, "content")]
            if not documents:
                raise ElementError("has no content", "export documents with their contents")
            return attachments.best(documents)
        case "DiagnosticReport":
            return attachments.best(objects_of(resource, "presentedForm")) or text_of(resource, "conclusion") or None
    return _narrative(resource)


def _narrative(composition: Element) -> str | None:
    """The text of all sections in their order, with titles; of a composition whose sections have none, its own."""
    sections = [*reversed(objects_of(composition, "section"))]
    blocks = []
    has_text = False
    while sections:
        section = sections.pop()
        inner, text = objects_of(section, "section"), _div(section)
        has_text |= bool(text)
        sections += reversed(inner)
        if text or inner:
            blocks.append("\n".join(filter(None, (text_of(section, "title"), text))))
    return "\n\n".join(filter(None, blocks)) if has_text else _div(composition) or None


def _div(parent: Element) -> str:
    return html_text(text_of(object_of(parent, "text"), "div"))
