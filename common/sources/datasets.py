"""A folder that Hugging Face `datasets` wrote: its Arrow files, which pyarrow reads without that package."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import reason
from .files import Reading, SourceFile, found_files
from .rows import Rows, refuse
from .tables import rows_of

if TYPE_CHECKING:
    from .source import DataSource

_SPLITS: Final = "dataset_dict.json"
_STATE: Final = "state.json"
_INFO: Final = "dataset_info.json"


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote the folder."""
    with suppress(OSError):  # which its reader will meet, too
        return any((folder / name).is_file() for name in (_SPLITS, _STATE, _INFO))
    return False


def datasets_rows(source: "DataSource", reading: Reading) -> Rows:
    """The rows of a dataset, by the names of records. Raises DataError."""
    return rows_of(dataset_files(source), source, reading, format_="arrow")


def dataset_files(source: "DataSource") -> list[SourceFile]:
    """The Arrow files of the folders that a source names, of one split where there are several. Raises DataError."""
    return found_files([file for folder in source.files for file in _files(folder, source.split)], [".arrow"])


def _files(folder: Path, split: str | None) -> Iterator[Path]:
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
