"""What a site's records are read from, as its operator writes it down; and the reader of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ..schema import Section
from .fhir import FhirSettings
from .files import Reading, file_state, fixed_part, found_files
from .rows import KINDS, PATIENT_ID, Column, Rows

Encoding = Literal["utf-8", "cp1252", "latin-1"]
Delimiter = Literal[",", ";", "|", "tab"]
Format = Literal["auto", "jsonl", "csv", "parquet", "fhir", "omop", "mimic-iv-note", "datasets"]

_AnyPath = Annotated[Path, Field(strict=False)]
_FINGERPRINT_LABEL: Final = b"grandrounds/source/v1\n"

# In a folder, a file of another ending is none of a source's.
ENDINGS: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


class DataSource(Section):
    """A source of records; a path alone stands for one with that file.

    ``files`` are files, globs and folders. ``patient`` and ``text``, ``prompt`` with ``completion``, or ``messages``
    are what it calls the columns of records; where one is named, columns that no record has are left out. ``encoding``
    is of text files, and of FHIR's attachments that state none; ``delimiter`` is of CSV.
    """

    files: tuple[_AnyPath, ...] = Field(default=(), strict=False)
    format: Format = "auto"
    patient: str | None = None
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    encoding: Encoding = "utf-8"
    delimiter: Delimiter = ","
    fhir: FhirSettings = FhirSettings()

    @model_validator(mode="before")
    @classmethod
    def _file(cls, given: Any) -> Any:
        return {"files": (given,)} if isinstance(given, str | Path) else given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.files and self.format != "omop":
            raise ValueError("files: needs a file, a glob or a folder")
        named = {*self.columns} - {PATIENT_ID}
        if named and not any(named <= kind for kind in KINDS):
            raise ValueError(f"{min(named)}: name text; or prompt and completion; or messages, and nothing beside")
        return self

    @classmethod
    def of(cls, source: "DataSource | Path | str") -> "DataSource":
        """A source as it is, or that of a file."""
        return source if isinstance(source, DataSource) else cls(files=(Path(source),))

    def below(self, folder: Path) -> Self:
        """The source whose paths start from ``folder``."""
        files, attachments = tuple(folder / file for file in self.files), self.fhir.attachments
        fhir = self.fhir.model_copy(update={"attachments": attachments and folder / attachments})
        return self.model_copy(update={"files": files, "fhir": fhir})

    @property
    def paths(self) -> tuple[Path, ...]:
        """All the files and folders that it reads from; of a glob, the folder."""
        attachments = self.fhir.attachments
        return (*(fixed_part(file) for file in self.files), *([attachments] if attachments else []))

    @property
    def name(self) -> str:
        """What people call it: its first file."""
        return self.files[0].name

    @property
    def columns(self) -> dict[Column, str]:
        """Its names of columns by those of records, as far as it names them."""
        named: dict[Column, str | None] = {
            "patient_id": self.patient,
            "text": self.text,
            "prompt": self.prompt,
            "completion": self.completion,
            "messages": self.messages,
        }
        return {ours: theirs for ours, theirs in named.items() if theirs}

    def fingerprint(self) -> str:
        """Another one wherever a setting, or name, size or time of a file is another: SHA-256 in hex.

        Raises DataError where a file is not there.
        """
        settings = self.model_dump(mode="json", exclude={"files"})
        states = [(file.name, file_state(file)) for file in found_files(self.files, ENDINGS)]
        said = [settings, *((name, state.st_size, state.st_mtime_ns) for name, state in states)]
        return hashlib.sha256(_FINGERPRINT_LABEL + json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_rows(source: DataSource, reading: Reading | None = None) -> Rows:
    """The rows of a source, one after another, ``reading`` being told how far it is.

    Raises DataError where it cannot be told whose they are.
    """
    return _reader(source.format)(source, reading or Reading())


def _reader(format_: Format) -> Callable[[DataSource, Reading], Rows]:
    """Each is loaded when it is needed: some bring libraries that others can do without."""
    match format_:
        case "auto" | "jsonl" | "csv" | "parquet":
            from .tables import table_rows

            return table_rows
        case "fhir":
            from .fhir import fhir_rows

            return fhir_rows
        case "omop" | "mimic-iv-note" | "datasets":
            raise NotImplementedError(f"format = {format_!r} is not built yet")
