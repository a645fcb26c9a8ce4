"""Files that are written whole or not at all, and stay."""

import fcntl
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from ..errors import StorageError
from .content import Content, blocks

LARGEST_LOG: Final = 1 << 23  # bytes
_TAIL_BYTES: Final = 1 << 13
_COLOURS: Final = re.compile(r"\x1b\[\d*m")


def write_atomically(path: Path, data: Content, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``: a reader sees the old content or all of the new.

    So does one after a crash: the bytes are fsynced before the rename and the folder after it. Raises StorageError,
    leaving nothing behind.
    """
    try:
        make_folder(path.parent)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                for block in blocks(data):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
                # The temporary file is private (0600); most of what is written is for whoever may read the folder.
                os.fchmod(file.fileno(), mode)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        fsync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            why="the study's results and its progress are kept there",
            fix="free space or choose another folder; what was written before is whole",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing, so that they outlast a crash. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def make_private_folder(path: Path) -> None:
    """Make a folder that no other user may enter. Raises StorageError."""
    try:
        make_folder(path)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be used: {error.strerror}",
            why="keys, and what a study has come to, are kept there",
            fix="choose another folder, or run this as the user whose folder it is",
        ) from error


def write_missing(path: Path, make: Callable[[], bytes], *, mode: int = 0o644) -> None:
    """Write a file unless there is one. Raises StorageError."""
    if not path.exists():
        write_atomically(path, make(), mode=mode)


def append(path: Path, make: Callable[[bytes], bytes], *, mode: int = 0o640) -> None:
    """Append what ``make`` has to add to all that the file holds, one process after another, and to no link.

    The bytes are fsynced, and the folder too. Raises StorageError; what was appended may then be cut short.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(make(file.read()))
            file.flush()
            os.fsync(file.fileno())
        fsync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be appended to: {error.strerror}",
            why="what is done has to stand there",
            fix="free space, or run this as the user whose folder it is",
        ) from error


def trim_log(path: Path) -> None:
    """Put what a log says aside once it is long, in place of what was put aside before: others decide how much that is.

    It is emptied in place, since who writes it has it open; nothing is done of what is a link, or has another name
    elsewhere. Raises OSError and StorageError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size > LARGEST_LOG:
            said = os.pread(descriptor, 2 * LARGEST_LOG, 0)
            write_atomically(path.with_name(f"{path.name}.1"), said, mode=stat.S_IMODE(found.st_mode))
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """A file's bytes; none where there is none."""
    return path.stat().st_size if path.exists() else 0


def last_line(path: Path, *, since: int = 0) -> str:
    """The last line with text of a log after byte ``since``, without its colours; empty where nothing can be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _TAIL_BYTES, since if since <= size else 0, 0))  # smaller where it was put aside
            lines = without_colours(file.read()).splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def without_colours(said: bytes) -> str:
    """What a program has printed, as text.

    >>> without_colours(b"\x1b[91mERROR\x1b[0m: no")
    'ERROR: no'
    """
    return _COLOURS.sub("", said.decode(errors="replace"))


def rename_folder(source: Path, target: Path) -> None:
    """Rename a finished folder such that a crash leaves all of it under ``target`` or nothing. Raises OSError."""
    for path in (*source.rglob("*"), source):
        fsync(path)
    source.rename(target)
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
