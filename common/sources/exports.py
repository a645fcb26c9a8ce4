"""Exports whose layout is known: MIMIC-IV-Note as it is shipped, the tables of an OMOP CDM, folders of `datasets`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..errors import reason
from .columns import Refuse
from .files import Reading, SourceFile, found_files
from .rows import Rows, refuse
from .source import DataSource
from .tables import ENDINGS, Table, rows_of, table_rows

# Of MIMIC-IV-Note: what is known of notes beside them.
_BESIDE: Final = "_detail"
_NOTE: Final = "note"
_LOWER: Final = {"patient": "person_id", "text": "note_text"}
_UPPER: Final = {"patient": "PERSON_ID", "text": "NOTE_TEXT"}
# Of `datasets`: of several splits, of one as it was saved, and of any.
_SPLITS: Final = "dataset_dict.json"
_STATE: Final = "state.json"
_INFO: Final = "dataset_info.json"


def mimic_rows(source: DataSource, reading: Reading) -> Rows:
    """The notes of MIMIC-IV-Note: of all its files but those of details. Raises DataError."""
    files = [file for file in found_files(source.files, ENDINGS) if not _stem(file.path).endswith(_BESIDE)]
    if not files:
        refuse(source.name, "it holds details of notes alone", "name the folder with discharge.csv.gz")
    return table_rows(_of(files, source.with_columns(patient="subject_id", text="text")), reading)


def exported_notes(source: DataSource, reading: Reading) -> Rows:
    """The notes of an OMOP CDM in files: of those that are called ``note``, or else lie in a folder that is.

    Columns are in upper case where the first file's are. Raises DataError.
    """
    found = found_files(source.files, ENDINGS)
    files = [file for file in found if _stem(file.path) == _NOTE]
    files = files or [file for file in found if _stem(file.path.parent) == _NOTE]
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


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote the folder."""
    with suppress(OSError):  # which its reader will meet, too
        return any((folder / name).is_file() for name in (_SPLITS, _STATE, _INFO))
    return False


def datasets_rows(source: DataSource, reading: Reading) -> Rows:
    """The rows of a dataset, by the names of records. Raises DataError."""
    return rows_of(dataset_files(source), source, reading, format_="arrow")


def dataset_files(source: DataSource) -> list[SourceFile]:
    """The Arrow files of the folders that a source names, of one split where there are several. Raises DataError."""
    return found_files([file for folder in source.files for file in _of_dataset(folder, source.split)], [".arrow"])


def _of_dataset(folder: Path, split: str | None) -> Iterator[Path]:
    if (folder / _SPLITS).is_file():
        splits = _names(folder / _SPLITS, "splits")
        if split not in splits:
            choice = f'name one of them: split = "{splits[0]}"' if splits else "save it again"
            refuse(folder.name, f"the dataset has {len(splits)} splits, and none of them is said to be read", choice)
        folder, split = folder / split, None
    if (folder / _STATE).is_file():
        return iter([folder / name for name in _names(folder / _STATE, "_data_files")])
    # As the package's cache has them.
    files = [path for path in folder.glob("*.arrow") if split is None or f"-{split}" in path.stem]
    if not files:
        refuse(folder.name, "it is no folder of a dataset", "give what save_to_disk() wrote, or a split that it has")
    return iter(files)


def _names(path: Path, field: str) -> list[str]:
    """The names of files or folders beside ``path`` that are listed there."""
    try:
        listed: Any = json.loads(path.read_bytes())[field]
        names = [one["filename"] if isinstance(one, dict) else one for one in listed]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        refuse(path.name, f"it cannot be read ({reason(error)})", "save the dataset again")
    return names
