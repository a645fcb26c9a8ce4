"""What a site's records are read from, as its operator writes it down; and the reader of it."""

import hashlib
import json
from collections.abc import Callable, Collection, Set
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..schema import Section
from .columns import Columns, Template, as_text
from .fhir import ENDINGS as RESOURCES
from .fhir import FhirSettings, is_export
from .files import Reading, SourceFile, file_state, fixed_part, found_files
from .identifiers import Similar
from .omop import Omop
from .rows import KINDS, KNOWN, PATIENT_ID, Rows

Delimiter = Literal[",", ";", "|", "tab"]
Format = Literal["auto", "jsonl", "csv", "parquet", "fhir", "omop", "mimic-iv-note", "datasets"]

_AnyPath = Annotated[Path, Field(strict=False)]
_FINGERPRINT_LABEL: Final = b"grandrounds/source/v2\n"


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("is no encoding of text that is known; utf-8, utf-16, cp1252 and latin-1 are") from None
    return name


def _listed(given: Any) -> Any:
    """One value, or several, as text."""
    values = given if isinstance(given, list | tuple) else [given]
    return tuple(as_text(value) if isinstance(value, int | float) else value for value in values)


Encoding = Annotated[str, AfterValidator(_known_encoding)]
_Values = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class DataSource(Section):
    """A source of records; a path alone stands for one with that file.

    ``files`` are files, globs and folders, ``split`` is of a dataset that has several. ``patient`` and ``text``,
    ``prompt`` with ``completion``, or ``messages`` are what it calls the columns of records, or a template over columns
    as "Findings: {findings}"; where one is named, columns that no record has are left out. ``where`` keeps the rows
    whose column has one of some values; ``crosswalk`` is a table of identifiers and of the patients whose they are.
    ``encoding`` is of text files, and of FHIR's attachments that state none; ``delimiter`` is of CSV: unsaid, the one
    that its first line shows.
    """

    files: tuple[_AnyPath, ...] = Field(default=(), strict=False)
    format: Format = "auto"
    split: str | None = None
    patient: str | None = None
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    where: dict[str, _Values] = Field(default_factory=dict)
    crosswalk: _AnyPath | None = None
    encoding: Encoding = "utf-8"
    delimiter: Delimiter | None = None
    fhir: FhirSettings | None = None
    omop: Omop | None = None
    _traits: frozenset[str] = PrivateAttr(default=frozenset())

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
        named = set(self.named_columns)
        if self.own_format == "fhir" and (of_columns := {*named, "patient", "where"} & {*self.model_fields_set}):
            raise ValueError(f"{min(of_columns)}: an export of FHIR has no columns")
        if named and not any(named <= kind for kind in KINDS):
            raise ValueError(f"{min(named)}: name text; or prompt and completion; or messages, and nothing beside")
        for name, written in [("patient", self.patient or PATIENT_ID), *self.named_columns.items()]:
            try:
                template = Template.parse(written)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if name in ("patient", "messages") and not template.is_column:
                raise ValueError(f"{name}: needs one column's name, without braces")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialised: SerializerFunctionWrapHandler, how: SerializationInfo) -> Any:
        """What was said of it: the path alone, if that is all."""
        said = {name: value for name, value in serialised(self).items() if value and name in self.model_fields_set}
        for name, table in (("fhir", self.fhir), ("omop", self.omop)):
            if table:
                said[name] = table.model_dump(mode=how.mode, by_alias=True, exclude_unset=True)
        return said["files"][0] if set(said) == {"files"} and len(said["files"]) == 1 else said

    @classmethod
    def of(cls, source: "DataSource | Path | str") -> "DataSource":
        """A source as it is, or that of a file."""
        return source if isinstance(source, DataSource) else cls(files=(Path(source),))

    def below(self, folder: Path) -> Self:
        """The source whose paths start from ``folder``."""
        changed: dict[str, Any] = {"files": tuple(folder / file for file in self.files)}
        if self.crosswalk:
            changed["crosswalk"] = folder / self.crosswalk
        if self.fhir:
            changed["fhir"] = self.fhir.below(folder)
        if self.omop:
            changed["omop"] = self.omop.below(folder)
        return self.model_copy(update=changed)

    def with_columns(self, *, patient: str, text: str) -> Self:
        """The source with these names of columns where it gives none of its own."""
        content = {} if self.named_columns else {"text": text}
        return self.model_copy(update={"patient": self.patient or patient, **content})

    def with_traits(self, names: Collection[str]) -> Self:
        """The source, of whose tables these columns say whom a record is about, where they have them."""
        copy = self.model_copy()
        copy._traits = frozenset(names)
        return copy

    @property
    def traits(self) -> frozenset[str]:
        """The columns that say whom a record is about."""
        return self._traits

    @property
    def paths(self) -> tuple[Path, ...]:
        """All the files and folders that it reads from; of a glob, the folder."""
        beside = [settings.files for settings in (self.fhir, self.omop) if settings]
        crosswalk = [self.crosswalk] if self.crosswalk else []
        return (*map(fixed_part, self.files), *crosswalk, *chain.from_iterable(beside))

    @property
    def own_format(self) -> Format:
        """The format that is said, or whose table there is."""
        return "omop" if self.omop else "fhir" if self.fhir else self.format

    @property
    def name(self) -> str:
        """What people call it: its first file, or its database."""
        return self.omop.database().name if self.omop else self.files[0].name

    @property
    def named_columns(self) -> dict[str, str]:
        """What it calls the columns of a record's content, or templates over columns, as far as it names them."""
        named = {ours: getattr(self, ours) for ours in ("text", "prompt", "completion", "messages")}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    def text_columns(self) -> frozenset[str]:
        """The columns that texts may be made of; where it names none, those of its format, or of records."""
        named = [template.names for template in Columns.of(self).content.values()]
        usual: dict[str, Set[str]] = {"fhir": set(), "omop": {"note_text"}, "mimic-iv-note": {"text"}}
        return frozenset(set().union(*named) or usual.get(self.own_format, KNOWN - {PATIENT_ID}))

    def found(self) -> list[SourceFile]:
        """All files whose bytes decide what is read. Raises DataError where one is not there."""
        from .exports import dataset_files
        from .tables import ENDINGS

        if (format_ := _format(self)) == "datasets":
            files = dataset_files(self)
        else:
            named = self.omop.found if self.omop else self.files
            files = found_files(named, RESOURCES if format_ == "fhir" else ENDINGS) if named else []
        return [*files, *(found_files([self.crosswalk], ENDINGS) if self.crosswalk else ())]

    def fingerprint(self) -> str:
        """Another one wherever a setting, or name, size or time of a file is another: SHA-256 in hex.

        Of a database server it is one of the settings alone, so that who has no network knows it, too: what is written
        there later is read when somebody asks for it. Raises DataError where a file is not there.
        """
        omop = self.omop and self.omop.model_copy(update={"password_file": None})
        settings = self.model_copy(update={"files": (), "crosswalk": None, "omop": omop}).model_dump(mode="json")
        states = [(file.name, file_state(file)) for file in self.found()]
        said = [settings, *((name, state.st_size, state.st_mtime_ns) for name, state in states)]
        return hashlib.sha256(_FINGERPRINT_LABEL + json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_rows(source: DataSource, reading: Reading | None = None, similar: Similar | None = None) -> Rows:
    """The rows of a source, one after another, ``reading`` being told how far it is.

    ``similar`` says whose identifiers are that differ in spelling alone, where a source itself joins patients. Raises
    DataError where it cannot be told whose they are.
    """
    format_ = _format(source)
    rows = _reader(format_, similar)(source, reading or Reading())
    if source.crosswalk is None or format_ == "fhir":  # which joins what a crosswalk says with patients' links
        return rows
    from .crosswalk import Crosswalk

    return Crosswalk.read(source.crosswalk, source.encoding).applied(rows)


def _format(source: DataSource) -> Format:
    """The format of its own, or that of what is there."""
    from .exports import is_dataset

    if source.own_format != "auto":
        return source.own_format
    if any(map(is_dataset, source.files)):
        return "datasets"
    has_columns = source.named_columns or source.patient or source.where
    return "fhir" if not has_columns and is_export(source.files) else "auto"


def _reader(format_: Format, similar: Similar | None) -> Callable[[DataSource, Reading], Rows]:
    """Each is loaded when it is needed: some bring libraries that others can do without."""
    match format_:
        case "auto" | "jsonl" | "csv" | "parquet":
            from .tables import table_rows

            return table_rows
        case "fhir":
            from .fhir import fhir_rows

            return partial(fhir_rows, similar=similar)
        case "omop":
            from .omop import omop_rows

            return omop_rows
        case "mimic-iv-note":
            from .exports import mimic_rows

            return mimic_rows
        case "datasets":
            from .exports import datasets_rows

            return datasets_rows
