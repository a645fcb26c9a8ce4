"""Blocks: windows of many records in flat arrays, in memory or in a folder that is mapped as it is read."""

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .windows import Window

Offsets = NDArray[np.int64]
Tokens = NDArray[np.unsignedinteger[Any]]

_PART_TOKENS: Final = 1 << 24
_ARRAYS: Final = ("tokens", "windows", "spans", "learnt", "records")


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Records, one after another, each of one window or more.

    Attributes:
        tokens: unsigned [tokens], of all windows, in the least type that holds the tokenizer's.
        windows: int64 [windows + 1], where each window begins in ``tokens``.
        spans: int32 [spans, 2], the stretches of windows that are learnt, from their window's first token.
        learnt: int64 [windows + 1], where each window's begin in ``spans``.
        records: int64 [records + 1], where each record's begin in ``windows``.
    """

    tokens: Tokens
    windows: Offsets
    spans: NDArray[np.int32]
    learnt: Offsets
    records: Offsets

    @classmethod
    def of(cls, records: Sequence[Sequence[Window]], dtype: type[np.unsignedinteger[Any]]) -> "Block":
        """The windows of some records, whose tokens ``dtype`` holds."""
        windows = [window for record in records for window in record]
        spans = [span for window in windows for span in window.learnt]
        tokens = [window.tokens for window in windows]
        return cls(
            tokens=np.concatenate(tokens).astype(dtype) if tokens else np.zeros(0, dtype=dtype),
            windows=offsets(len(each) for each in tokens),
            spans=np.array(spans, dtype=np.int32).reshape(-1, 2),
            learnt=offsets(len(window.learnt) for window in windows),
            records=offsets(map(len, records)),
        )

    @classmethod
    def open(cls, folder: Path) -> "Block":
        """The block in a folder, of which is read what is looked at. Raises OSError and ValueError."""
        return cls(**{name: _mapped(_file(folder, name)) for name in _ARRAYS})

    def check(self) -> None:
        """Raises ValueError unless the arrays fit together, as one that lost its contents on the disk does not."""
        check_offsets(self.windows, len(self.tokens))
        check_offsets(self.learnt, len(self.spans))
        check_offsets(self.records, len(self.windows) - 1)
        if len(self.learnt) != len(self.windows):
            raise ValueError("spans of other windows")
        begins, ends = self.spans.reshape(-1, 2).T
        if not (
            (begins >= 0) & (begins <= ends) & (ends <= np.repeat(np.diff(self.windows), np.diff(self.learnt)))
        ).all():
            raise ValueError("spans beyond their windows")

    def write(self, folder: Path) -> None:
        """Write it to a folder, for its owner alone. Raises OSError."""
        for name in _ARRAYS:
            write_array(_file(folder, name), getattr(self, name))

    @property
    def count(self) -> int:
        """How many records there are."""
        return len(self.records) - 1

    @property
    def has_target(self) -> NDArray[np.bool_]:
        """Whether there is a token to learn, for each window [windows]; its first is predicted from nothing."""
        counted = np.concatenate([[0], np.cumsum(self.spans[:, 1] > np.maximum(self.spans[:, 0], 1))])
        return counted[self.learnt[1:]] > counted[self.learnt[:-1]]

    @property
    def highest_token(self) -> int:
        """The highest token of all, each of which is read, a part at a time; 0 where there is none."""
        highest = 0
        for start in range(0, len(self.tokens), _PART_TOKENS):
            highest = max(highest, int(self.tokens[start : start + _PART_TOKENS].max()))
            _let_go(self.tokens)
        return highest

    def record(self, number: int) -> Tokens:
        """The tokens of a record by its number, all of its windows one after another."""
        start, end = self.windows[self.records[number : number + 2]]
        return self.tokens[start:end]

    def window(self, number: int) -> Window:
        """A window by its number."""
        start, end = self.windows[number : number + 2]
        first, last = self.learnt[number : number + 2]
        return Window(
            tokens=self.tokens[start:end].astype(np.int32),
            learnt=tuple((int(begin), int(stop)) for begin, stop in self.spans[first:last]),
        )


def gathered(blocks: Sequence[Block], order: Offsets, folder: Path | None = None) -> Block:
    """The records of all ``blocks`` in ``order`` (their numbers, counted through all blocks); some may be left out.

    With a ``folder``, the block is there and mapped from there: no more than one of the ``blocks`` is in memory for it.
    Raises OSError.
    """
    windows, spans, per_window, per_record = (
        np.concatenate(parts)
        for parts in zip(
            *((np.diff(b.windows), b.spans, np.diff(b.learnt), np.diff(b.records)) for b in blocks),
            strict=True,
        )
    )
    chosen = _flat(_starts(per_record)[order], per_record[order])
    sizes = np.add.reduceat(np.append(windows, 0), _starts(per_record)) * (per_record > 0)
    places = np.full(len(per_record), -1, dtype=np.int64)
    places[order] = _starts(sizes[order])
    tokens = _gather_tokens(blocks, places, sizes, folder)
    block = Block(
        tokens=tokens,
        windows=offsets(windows[chosen]),
        spans=spans[_flat(_starts(per_window)[chosen], per_window[chosen])],
        learnt=offsets(per_window[chosen]),
        records=offsets(per_record[order]),
    )
    if folder is None:
        return block
    for name in _ARRAYS[1:]:
        write_array(_file(folder, name), getattr(block, name))
    return Block.open(folder)


def _gather_tokens(blocks: Sequence[Block], places: Offsets, sizes: Offsets, folder: Path | None) -> Tokens:
    """Each record's tokens at its place; those at -1 are left out."""
    total, dtype = int(sizes[places >= 0].sum()), blocks[0].tokens.dtype
    out = np.empty(0 if folder else total, dtype=dtype)
    descriptor, header = -1, 0
    if folder is not None:
        header = write_array(_file(folder, "tokens"), out, shape=(total,))
        descriptor = os.open(_file(folder, "tokens"), os.O_WRONLY)
    try:
        number = 0
        for block in blocks:
            own = block.tokens
            for start, end in zip(*_edges(block), strict=True):
                place = int(places[number])
                number += 1
                if place < 0 or start == end:
                    continue
                if folder is None:
                    out[place : place + end - start] = own[start:end]
                else:
                    _write_at(descriptor, own[start:end].tobytes(), header + place * dtype.itemsize)
            _let_go(own)
    finally:
        if descriptor >= 0:
            os.fsync(descriptor)
            os.close(descriptor)
    return out


def _let_go(array: NDArray[Any]) -> None:
    """Of a mapped array, keep no page in memory: each was looked at once. It is read again where it is needed."""
    source: Any = array
    while isinstance(source, np.ndarray):
        source = source.base
    if isinstance(source, mmap.mmap):
        source.madvise(mmap.MADV_DONTNEED)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    """All of it, of which a full disk, or much of it, has the system write a part alone."""
    while data:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written


def _edges(block: Block) -> tuple[list[int], list[int]]:
    edges = block.windows[block.records]
    return edges[:-1].tolist(), edges[1:].tolist()


def offsets(sizes: Iterable[int] | NDArray[np.integer[Any]]) -> Offsets:
    """Where parts of these sizes begin, and where the last ends.

    >>> offsets([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    found = sizes if isinstance(sizes, np.ndarray) else np.fromiter(sizes, dtype=np.int64)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(found, dtype=np.int64)])


def check_offsets(starts: Offsets, end: int) -> None:
    """Raises ValueError unless ``starts`` are where parts begin, in order, of what ends at ``end``."""
    if not len(starts) or starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
        raise ValueError("parts of something else")


def _starts(sizes: NDArray[np.integer[Any]]) -> Offsets:
    return offsets(sizes)[:-1]


def _flat(starts: Offsets, sizes: NDArray[np.integer[Any]]) -> Offsets:
    """The numbers in stretches of ``sizes`` from ``starts``, one after another.

    >>> _flat(np.array([10, 4]), np.array([2, 3])).tolist()
    [10, 11, 4, 5, 6]
    """
    return np.repeat(starts - _starts(sizes), sizes) + np.arange(int(sizes.sum()), dtype=np.int64)


def _mapped(path: Path) -> NDArray[Any]:
    """An array of which is read what is looked at; a plain one, since slices of a memory map are slow to make."""
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found.view(np.ndarray)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def private(path: str, flags: int) -> int:
    """An opener of files for their owner alone."""
    return os.open(path, flags, 0o600)


def write_array(path: Path, array: NDArray[Any], shape: tuple[int, ...] | None = None) -> int:
    """Write an array, for the file's owner alone, or the header of one that has ``shape``; the header's length."""
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    with open(path, "wb", opener=private) as file:
        np.lib.format.write_array_header_1_0(file, described | {"shape": array.shape if shape is None else shape})
        header = file.tell()
        file.write(np.ascontiguousarray(array).data if array.size else b"")
        file.flush()
        os.fsync(file.fileno())
    return header
