"""What a study's folder holds, read as a stranger's: no link is followed, and nothing is run or waited for."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from ...common.errors import StorageError
from ...common.study.artefacts import ADAPTER, ATTACKS, AUDIT, CORE, LEDGER, RESULTS, SUMS, WEIGHTS

_LARGEST: Final = {LEDGER: 1 << 30, WEIGHTS: 1 << 32, CORE: 1 << 32}
_LARGEST_OTHER: Final = 1 << 26
_LARGEST_SUM: Final = 1 << 34
_STRANGERS: Final = 10  # that are named
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The files that were read, by path; ``faults`` says why one was not that is there.

    ``strangers`` are in the adapter's folder and do not belong there; not all of them, if there are many.
    """

    files: Mapping[str, bytes]
    faults: Mapping[str, str]
    strangers: tuple[str, ...]
    folder: Path | None = field(default=None, compare=False)

    def sum_file(self, path: str) -> bytes | None:
        """A file of ``sums/``, read when it is asked for: all of them together may be large. None without one.

        Raises StorageError where it is there and is refused.
        """
        if self.folder is None:
            return None
        try:
            with _opened(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root:
                return _read(root, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror or 'it cannot be read'}",
                why="a round's step cannot be taken again without its sum",
                fix="put back the file as the study's server wrote it, or remove the folder sums/",
            ) from error


def read_evidence(folder: Path) -> Evidence:
    """Read what a study leaves in ``folder``. Raises StorageError where that is no folder or cannot be read."""
    files: dict[str, bytes] = {}
    faults: dict[str, str] = {}
    strangers: tuple[str, ...] = ()
    try:
        with _opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root:
            for path in (LEDGER, *RESULTS, CORE, AUDIT, ATTACKS):
                try:
                    files[path] = _read(root, path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    faults[path] = error.strerror or "it cannot be read"
            strangers = _strangers(root)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{folder} cannot be read: {getattr(error, 'strerror', None) or 'it is no name of a folder'}",
            why="all that can be verified is in the study's folder",
            fix="name the folder that holds report.json and ledger/",
        ) from error
    return Evidence(files=files, faults=faults, strangers=strangers, folder=folder)


def _read(root: int, path: str) -> bytes:
    """A regular file below ``root``, all of it. Raises OSError, with a reason in words where the file is refused."""
    folder, _, name = path.rpartition("/")
    with _opened(folder or ".", _FLAGS | os.O_DIRECTORY, root) as parent:
        return _contents(parent, name, _LARGEST_SUM if folder == SUMS else _LARGEST.get(path, _LARGEST_OTHER))


def _contents(folder: int, name: str, largest: int) -> bytes:
    # Looked at before it is opened: opening a device can already do something.
    _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
    with _opened(name, _FLAGS, folder) as descriptor:
        size = _require_regular(os.fstat(descriptor)).st_size
        if size > largest:
            raise OSError(0, f"it is larger than {largest} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size + 1)


def _require_regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise OSError(0, f"it is {kind}")
    return status


def _strangers(root: int) -> tuple[str, ...]:
    expected = {path.removeprefix(f"{ADAPTER}/") for path in (*RESULTS, CORE) if path.startswith(f"{ADAPTER}/")}
    try:
        with _opened(ADAPTER, _FLAGS | os.O_DIRECTORY, root) as folder, os.scandir(folder) as names:
            return tuple(islice((name.name for name in names if name.name not in expected), _STRANGERS))
    except FileNotFoundError:
        return ()
    except OSError:  # a link or a file: its contents were refused already
        return (ADAPTER,)


@contextmanager
def _opened(path: str | Path, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
