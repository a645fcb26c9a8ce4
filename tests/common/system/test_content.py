"""What is large is read where it lies, as if it were in memory."""

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.errors import StorageError
from grandrounds.common.system import content
from grandrounds.common.system.content import Content, Joined, Stored, blocks, cut

PLACES = st.none() | st.integers(-40, 40)


def stored(data: bytes, *, before: bytes = b"", after: bytes = b"") -> Stored:
    """In the middle of a file whose name is gone."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (what is stored lies in it)
    file.write(before + data + after)
    file.flush()
    return Stored(file).part(len(before), len(before) + len(data))


def kinds(data: bytes) -> list[Content]:
    third = len(data) // 3
    parts: list[Content] = [data[:third], stored(data[third : 2 * third]), memoryview(data)[2 * third :]]
    return [data, bytearray(data), memoryview(data), stored(data, before=b"xy", after=b"z"), Joined(parts)]


@given(st.binary(max_size=30), PLACES, PLACES)
def test_a_slice_is_that_of_the_same_bytes_wherever_they_lie(data: bytes, start: int | None, stop: int | None) -> None:
    for each in kinds(data):
        assert len(each) == len(data)
        assert each[start:stop] == data[start:stop]


@given(st.binary(max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_a_part_of_a_part_is_where_it_was_cut(data: bytes, start: int, stop: int) -> None:
    start, stop = sorted((min(start, len(data)), min(stop, len(data))))
    for each in kinds(data):
        part = cut(each, start, stop)
        assert part[:] == data[start:stop]
        assert cut(part, 0, len(part))[:] == data[start:stop]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24])
def test_blocks_are_all_of_it_in_order_and_none_is_larger(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "BLOCK_BYTES", 8)
    data = bytes(range(size))
    for each in kinds(data):
        found = list(blocks(each))
        assert b"".join(found) == data
        assert all(0 < len(block) <= 8 for block in found)


def test_what_is_in_memory_or_in_a_file_is_not_read_by_cutting_it() -> None:
    data = b"a large update"
    part = cut(data, 2, 7)
    assert isinstance(part, memoryview) and part.obj is data
    assert isinstance(cut(stored(data), 2, 7), Stored)


def test_a_file_that_became_shorter_is_refused_and_not_read_as_zeros() -> None:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (what is stored lies in it)
    file.write(bytes(100))
    file.flush()
    whole = Stored(file)
    os.truncate(file.fileno(), 60)
    assert whole[:60] == bytes(60)
    for part in (slice(50, 70), slice(60, 61), slice(0, None)):
        with pytest.raises(StorageError, match="cannot be read: it is shorter than it was"):
            whole[part]
