"""Exports whose layout is known: MIMIC-IV-Note as it is shipped, and the tables of an OMOP CDM in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .columns import Refuse
from .files import Reading, SourceFile, found_files
from .rows import Rows, refuse
from .source import DataSource
from .tables import ENDINGS, Table, table_rows

# Of MIMIC-IV-Note: what is known of notes beside them.
_BESIDE: Final = "_detail"
_NOTE: Final = "note"
_LOWER: Final = {"patient": "person_id", "text": "note_text"}
_UPPER: Final = {"patient": "PERSON_ID", "text": "NOTE_TEXT"}


def mimic_rows(source: DataSource, reading: Reading) -> Rows:
    """The notes of MIMIC-IV-Note: of all its files but those of details. Raises DataError."""
    files = [file for file in found_files(source.files, ENDINGS) if not _stem(file.path).endswith(_BESIDE)]
    return table_rows(_of(files, source.with_columns(patient="subject_id", text="text")), reading)


def exported_notes(source: DataSource, reading: Reading) -> Rows:
    """The notes of an OMOP CDM in files: of those that are called ``note``, or lie in a folder that is.

    Columns are in upper case where the first file's are. Raises DataError.
    """
    files = [file for file in found_files(source.files, ENDINGS) if _NOTE in map(_stem, [file.path, file.path.parent])]
    if not files:
        refuse(source.name, "no file is called note", "name the folder of the tables, or give such a file its name")
    names = _UPPER if _UPPER["patient"] in _header(files[0], source.encoding) else _LOWER
    return table_rows(_of(files, source.with_columns(**names)), reading)


def _header(file: SourceFile, encoding: str) -> Sequence[str]:
    header: list[str] = []

    def needed(names: Sequence[str], _: Refuse) -> Sequence[str]:
        header.extend(names)
        return ()

    next(Table(file=file, reading=Reading(), needed=needed, encoding=encoding).rows(), None)
    return header


def _stem(path: Path) -> str:
    """A file's name in lower case, up to its first dot."""
    return path.name.lower().partition(".")[0]


def _of(files: list[SourceFile], source: DataSource) -> DataSource:
    return source.model_copy(update={"files": tuple(file.path for file in files), "format": "auto"})
