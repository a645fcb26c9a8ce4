"""The files that a source names, by files, globs and folders; how they are opened; and how far their reading is."""

import glob
import io
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn

from ..errors import reason
from .rows import refuse

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# By what a file begins with; pyarrow has both, and goes on where one stream ends and another follows.
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_ENDINGS: Final = (".gz", ".zst")
_PACKED: Final = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_LONGEST_MAGIC: Final = 6
# Of a line, in bytes or characters: a quote that is not closed, or a few bytes that unpack to many, must not hold all
# that follows, or might.
LONGEST: Final = 1 << 28


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, and what messages call it: its name, with its folders where two have one name."""

    path: Path
    name: str

    @property
    def ending(self) -> str:
        """What the name ends in, as ".csv", whether or not ".gz" or ".zst" follows."""
        return ending(self.path)

    def place(self, position: str) -> str:
        """The file's name with the line or row."""
        return f"{self.name}, {position}" if position else self.name

    def refuse(self, position: str, what: str, fix: str) -> NoReturn:
        """Raise the DataError of what stands there."""
        refuse(self.place(position), what, fix)


def ending(path: Path) -> str:
    """What a file's name ends in, without what says that it is compressed.

    >>> ending(Path("notes.CSV.gz")), ending(Path("notes.gz"))
    ('.csv', '')
    """
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED_ENDINGS else path
    return name.suffix.lower()


def found_files(named: Sequence[Path], endings: Collection[str]) -> list[SourceFile]:
    """The files that are named: files, globs, and in folders all with one of these endings, each once, in the order of
    their paths. Raises DataError where nothing is there.
    """
    every = sorted({path.absolute() for one in named for path in _files(one, endings)}, reverse=True)
    paths = sorted({os.path.realpath(path): path for path in every}.values())  # of several names of a file, the first
    names = Counter(path.name for path in paths)
    top = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        SourceFile(path, path.name if names[path.name] == 1 else path.relative_to(top).as_posix()) for path in paths
    ]


def is_glob(path: Path) -> bool:
    """Whether it is a pattern of names, and no file's own name."""
    return glob.has_magic(str(path)) and not path.exists()


def fixed_part(path: Path) -> Path:
    """The path, or of a glob the last folder that it names."""
    while is_glob(path):
        path = path.parent
    return path


def _files(named: Path, endings: Collection[str]) -> list[Path]:
    try:
        at = [Path(path) for path in glob.iglob(str(named), recursive=True)] if is_glob(named) else [named]  # noqa: PTH207
        files = [path for path in at if not path.is_dir()]
        for folder in at:
            files += [path for path in _below(folder) if ending(path) in endings] if folder.is_dir() else []
    except OSError as error:
        refuse(named.name, f"it cannot be read ({reason(error)})", "check the path and its permissions")
    if not at:
        refuse(named.name, "no file has such a name", "compare the pattern with what is there")
    if any(path.exists() and not path.is_file() for path in files):
        refuse(named.name, "it is a pipe or a device", "give a file: records are read more than once")
    if not files:
        refuse(named.name, "no file of a known kind is in the folder", f"known are {', '.join(sorted(endings))}")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder but those that programs leave there. Raises OSError where a part cannot be read."""
    for here, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = filter(_is_data, folders)
        yield from (Path(here, name) for name in filter(_is_data, names))


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_"))


@dataclass
class Reading:
    """How far the reading of a source is: ``done`` of ``total`` bytes of files, or of what else its reader counts."""

    total: int = 0
    done: int = 0

    @property
    def share(self) -> float:
        """How much of the source was read, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def expect(self, files: Sequence[SourceFile]) -> None:
        """Count the bytes of these files to what will be read. Raises DataError where one is not there."""
        self.total += sum(state.st_size for state in map(file_state, files))

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[BinaryIO]:
        """The file's bytes, unpacked if they are compressed by gzip or zstd; what is read of it is ``done``.

        What fails in reading it is a DataError that quotes nothing.
        """
        try:
            with io.BufferedReader(_Counted(file.path, self)) as raw:
                yield _unpacked(file, raw)
        except OSError as error:
            file.refuse("", f"it cannot be read ({reason(error)})", "check the path, its permissions and its end")


def file_state(file: SourceFile) -> os.stat_result:
    """What the system says of a file. Raises DataError where it is not there."""
    try:
        return file.path.stat()
    except OSError as error:
        file.refuse("", f"it cannot be read ({reason(error)})", "check the path and its permissions")


def _unpacked(file: SourceFile, raw: "io.BufferedReader[_Counted]") -> BinaryIO:
    begins = raw.peek(_LONGEST_MAGIC)
    for magic, packed in _PACKED.items():
        if begins.startswith(magic):
            file.refuse("", f"it is compressed by {packed}", "unpack it; gzip and zstd are read as they are")
    codec = next((codec for magic, codec in _COMPRESSED.items() if begins.startswith(magic)), None)
    if codec is None:
        return raw
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), codec))


class _Counted(io.FileIO):
    """A file of which it is counted how much was read."""

    def __init__(self, path: Path, reading: Reading) -> None:
        super().__init__(path)
        self._reading = reading

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        number = super().readinto(buffer)
        self._reading.done += number or 0
        return number
