"""What a study leaves is kept at a site whole or not at all, whenever its worker dies."""

import os

import pytest
from soak.killed_simulation import KILLED, Writes, in_child

from grandrounds.client.site.results import keep_results
from grandrounds.common.errors import StorageError

FILES = {"report.json": b"{}", "adapter/weights": b"numbers"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "abc"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept_again_is_as_it_was_and_what_was_damaged_is_mended(folder):
    keep_results(folder, FILES)
    (folder / "ledger").mkdir()
    keep_results(folder, FILES)
    assert contents(folder) == FILES
    assert (folder / "ledger").exists(), "nothing was written anew"
    (folder / "report.json").write_bytes(b"{ }")
    keep_results(folder, FILES)
    assert contents(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["abc"]


def test_a_worker_that_is_killed_while_it_keeps_them_keeps_them_when_it_is_asked_again(tmp_path):
    counting = Writes()
    with counting.counted():
        keep_results(tmp_path / "whole", FILES)
    for place in range(1, counting.reached + 1):
        folder = tmp_path / str(place)
        assert in_child(lambda: keep_results(folder, FILES), dies_at=place) == KILLED  # noqa: B023 (called at once)
        assert contents(folder) in ({}, FILES)
        keep_results(folder, FILES)
        assert contents(folder) == FILES
        assert list(tmp_path.glob(".*")) == [], "nothing half written is left"


@pytest.mark.parametrize("writes", range(4))
def test_where_the_disk_is_full_nothing_is_left(folder, monkeypatch, writes):
    done: list[None] = []
    fsync = os.fsync

    def failing(descriptor):
        if len(done) == writes:
            raise OSError(28, "No space left on device")
        done.append(fsync(descriptor))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="No space left"):
        keep_results(folder, FILES)
    assert contents(folder.parents[1]) == {}
