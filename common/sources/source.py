"""What a site's records are read from, as its operator writes it down; and the reader of it."""

import hashlib
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ..schema import Section
from .fhir import FhirSettings
from .files import Reading, file_state, fixed_part, found_files
from .omop import Omop
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
    fhir: FhirSettings | None = None
    omop: Omop | None = None

    @model_validator(mode="before")
    @classmethod
    def _file(cls, given: Any) -> Any:
        return {"files": (given,)} if isinstance(given, str | Path) else given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.files) == (self.omop is not None):
            raise ValueError("files: needs a file, a glob or a folder; or omop, a database, instead")
        if self.omop is not None and self.format not in ("auto", "omop"):
            raise ValueError('format: a database has the format "omop"')
        if self.fhir is not None and self.format not in ("auto", "fhir"):
            raise ValueError('format: with [data.fhir] it is "fhir"')
        if self.own_format == "fhir" and self.columns:
            raise ValueError(f"{min(self.columns)}: an export of FHIR has no columns")
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
        files = tuple(folder / file for file in self.files)
        fhir, omop = self.fhir and self.fhir.below(folder), self.omop and self.omop.below(folder)
        return self.model_copy(update={"files": files, "fhir": fhir, "omop": omop})

    def with_columns(self, *, patient: str, text: str) -> Self:
        """The source with these names of columns where it gives none of its own."""
        content = {} if {*self.columns} - {PATIENT_ID} else {"text": text}
        return self.model_copy(update={"patient": self.patient or patient, **content})

    @property
    def paths(self) -> tuple[Path, ...]:
        """All the files and folders that it reads from; of a glob, the folder."""
        beside = [settings.files for settings in (self.fhir, self.omop) if settings]
        return (*map(fixed_part, self.files), *chain.from_iterable(beside))

    @property
    def own_format(self) -> Format:
        """The format that is said, or whose table there is."""
        return "omop" if self.omop else "fhir" if self.fhir else self.format

    @property
    def name(self) -> str:
        """What people call it: its first file, or its database."""
        return self.omop.database().name if self.omop else self.files[0].name

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

        Of a database server it is one of the settings alone, so that who has no network knows it, too: what is written
        there later is read when somebody asks for it. Raises DataError where a file is not there.
        """
        settings = self.model_dump(mode="json", exclude={"files": True, "omop": {"password_file"}})
        files = self.files or (self.omop.files if self.omop else ())
        states = [(file.name, file_state(file)) for file in (found_files(files, ENDINGS) if files else ())]
        said = [settings, *((name, state.st_size, state.st_mtime_ns) for name, state in states)]
        return hashlib.sha256(_FINGERPRINT_LABEL + json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_rows(source: DataSource, reading: Reading | None = None) -> Rows:
    """The rows of a source, one after another, ``reading`` being told how far it is.

    Raises DataError where it cannot be told whose they are.
    """
    return _reader(source.own_format)(source, reading or Reading())


def _reader(format_: Format) -> Callable[[DataSource, Reading], Rows]:
    """Each is loaded when it is needed: some bring libraries that others can do without."""
    match format_:
        case "auto" | "jsonl" | "csv" | "parquet":
            from .tables import table_rows

            return table_rows
        case "fhir":
            from .fhir import fhir_rows

            return fhir_rows
        case "omop":
            from .omop import omop_rows

            return omop_rows
        case "mimic-iv-note":
            from .exports import mimic_rows

            return mimic_rows
        case "datasets":
            raise NotImplementedError(f"format = {format_!r} is not built yet")
