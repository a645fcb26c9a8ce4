"""Locks that one process of this machine holds at a time, and that end with it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GrandRoundsError, StorageError
from .files import make_folder


@contextmanager
def alone(path: Path, *, taken: GrandRoundsError) -> Iterator[None]:
    """Hold the lock at ``path``. Raises ``taken`` if another process holds it, and StorageError."""
    lock = _open(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield
    finally:
        os.close(lock)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock at ``path``, once whoever has it lets go. Raises StorageError."""
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; asking holds nobody up for longer than the question. Raises StorageError."""
    if not path.exists():
        return False
    lock = _open(path)
    try:
        # Shared: two who ask at once do not take each other for the holder.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _open(path: Path) -> int:
    try:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be opened: {error.strerror}",
            why="two processes at once would each undo what the other does",
            fix="run this as the user whose folder it is",
        ) from error
