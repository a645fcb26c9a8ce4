"""Bytes that can be too many to hold: in memory, or in a file and read where they are used."""

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final, Union

from ..errors import StorageError

# In memory, and looked at where they lie.
Bytes = bytes | bytearray | memoryview
# A slice of any of these is bytes in memory, of no more than was asked for.
Content = Union[Bytes, "Stored", "Joined"]
BLOCK_BYTES: Final = 1 << 22
_MOST_BYTES: Final = 1 << 30  # of a call


class Stored:
    """A part of a file, which stays open, so that a name that is gone takes nothing away. It must not change.

    It is read and not mapped: what a process has mapped counts as its memory, and where a disk fails ends it.
    """

    def __init__(self, file: IO[bytes], start: int = 0, stop: int | None = None) -> None:
        """The bytes from ``start`` to ``stop``, or to the end, of a ``file`` with a descriptor."""
        self._file = file
        self._start = start
        self._stop = os.fstat(file.fileno()).st_size if stop is None else stop

    @classmethod
    def open(cls, path: Path) -> "Stored":
        """All of a file. Raises OSError."""
        return cls(path.open("rb"))

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> bytes:
        """Raises StorageError."""
        start, stop, _ = part.indices(len(self))
        try:
            # By descriptor and place, so that several may read; no call reads 2 GiB.
            found = [
                os.pread(self._file.fileno(), min(_MOST_BYTES, stop - place), self._start + place)
                for place in range(start, stop, _MOST_BYTES)
            ]
            read = found[0] if len(found) == 1 else b"".join(found)
            if len(read) != max(stop - start, 0):
                raise OSError(errno.EIO, "it is shorter than it was")
        except OSError as error:
            raise StorageError(
                f"a file of the study cannot be read: {error.strerror}",
                why="what is too large to be held is read where it is used",
                fix="check the disk, then start again; what was written before is whole",
            ) from error
        return read

    def part(self, start: int, stop: int) -> "Stored":
        """What lies there, not read yet."""
        return Stored(self._file, self._start + start, self._start + stop)


class Joined:
    """One after the other, and not put together."""

    def __init__(self, parts: "Iterable[Content]") -> None:
        self._parts = tuple(parts)
        self._size = sum(map(len, self._parts))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Raises StorageError."""
        start, stop, _ = part.indices(len(self))
        found = []
        for each in self._parts:
            if start < len(each) and stop > 0:
                found.append(each[max(start, 0) : stop])
            start, stop = start - len(each), stop - len(each)
        return bytes(found[0]) if len(found) == 1 else b"".join(found)


def blocks(content: Content) -> Iterator[Bytes]:
    """All of it, in order, no more than ``BLOCK_BYTES`` at a time. Raises StorageError."""
    whole = memoryview(content) if isinstance(content, Bytes) else content
    return (whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES))


def cut(content: Content, start: int, stop: int) -> Content:
    """A part of it, where it lies."""
    if isinstance(content, Stored):
        return content.part(start, stop)
    return memoryview(content).toreadonly()[start:stop] if isinstance(content, Bytes) else content[start:stop]


def in_memory(content: Content) -> Bytes:
    """All of it: what is in memory where it lies, and what is not in memory once. Raises StorageError."""
    if isinstance(content, Bytes):
        return content
    whole, start = bytearray(len(content)), 0
    for block in blocks(content):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole
