"""Files are whole: whatever happens while one is written, its reader finds the old content or all of the new."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

import pytest

from grandrounds.common.errors import StorageError
from grandrounds.common.system import files
from grandrounds.common.system.files import LARGEST_LOG, make_folder, rename_folder, trim_log, write_atomically

OLD, NEW = b"old content", b"new content, and longer"


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


class HalfWritten:
    """A temporary file whose disk fills up, or whose writer is interrupted, half-way through."""

    def __init__(self, error, **options):
        self._file = tempfile.NamedTemporaryFile(**options)  # noqa: SIM115
        self._error = error
        self.name = self._file.name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise self._error


def break_at(step, error, monkeypatch):
    if step == "write":
        monkeypatch.setattr(files, "NamedTemporaryFile", lambda **options: HalfWritten(error, **options))
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", fail(error))
    elif step == "chmod":
        monkeypatch.setattr(os, "fchmod", fail(error))
    else:
        monkeypatch.setattr(Path, "replace", fail(error))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), MemoryError()], ids=["full", "interrupted", "memory"])
@pytest.mark.parametrize("step", ["write", "fsync", "chmod", "rename"])
def test_a_crash_at_any_step_leaves_the_old_file_whole_and_nothing_behind(tmp_path, step, error, existing, monkeypatch):
    path = tmp_path / "report.json"
    if existing:
        write_atomically(path, OLD)
    with monkeypatch.context() as patched:
        break_at(step, error, patched)
        with pytest.raises(StorageError if error is FULL else type(error)):
            write_atomically(path, NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == (["report.json"] if existing else [])
    assert not existing or path.read_bytes() == OLD
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


@pytest.fixture
def steps(monkeypatch):
    """The names of what was fsynced, in order, and "rename" where something got its name."""
    taken = []
    fsync = os.fsync

    def recording_fsync(descriptor):
        taken.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def recording(rename):
        def renaming(path, target):
            taken.append("rename")
            return rename(path, target)

        return renaming

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording(Path.replace))
    monkeypatch.setattr(Path, "rename", recording(Path.rename))
    return taken


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(tmp_path, steps):
    write_atomically(tmp_path / "report.json", NEW)
    assert steps[0].startswith(".report.json-")
    assert steps[1:] == ["rename", tmp_path.name]


def test_a_folder_s_files_and_names_are_on_disk_before_it_gets_its_name(tmp_path, steps):
    whole = tmp_path / "half" / "whole"
    (whole / "below").mkdir(parents=True)
    for name in ("adapter.safetensors", "below/README.md"):
        (whole / name).write_bytes(NEW)
    rename_folder(whole, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "below" / "README.md").read_bytes() == NEW
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert sorted(before) == sorted(["adapter.safetensors", "below", "README.md", "whole"])
    assert after == [tmp_path.name]


def test_a_new_folder_s_name_is_on_disk_in_every_folder_above_it(tmp_path, steps):
    make_folder(tmp_path / "a" / "b")
    assert sorted(steps) == sorted([tmp_path.name, "a"])
    steps.clear()
    make_folder(tmp_path / "a" / "b")
    assert steps == []


def test_a_reader_that_opened_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "report.json"
    write_atomically(path, OLD)
    with path.open("rb") as reader:
        write_atomically(path, NEW)
        assert reader.read() == OLD
    assert path.read_bytes() == NEW


def test_missing_folders_are_made_and_the_file_is_for_whoever_reads_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "report.json"
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_long_log_is_put_aside_while_its_writer_goes_on_writing(tmp_path):
    log, before = tmp_path / "gate.log", bytes(LARGEST_LOG)
    with log.open("ab", buffering=0) as writer:
        writer.write(before)
        trim_log(log)
        assert log.read_bytes() == before, "it is not long yet"
        for said in (b"one", b"another"):
            writer.write(before[: LARGEST_LOG - log.stat().st_size] + said)
            trim_log(log)
            writer.write(b"more")
            assert log.read_bytes() == b"more"
            assert (tmp_path / "gate.log.1").read_bytes().endswith(said)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_a_link_leads_to_is_never_emptied(tmp_path, link):
    other = tmp_path / "other"
    other.write_bytes(bytes(LARGEST_LOG + 1))
    link(other, tmp_path / "gate.log")
    with contextlib.suppress(OSError):
        trim_log(tmp_path / "gate.log")
    assert other.stat().st_size == LARGEST_LOG + 1
    assert not (tmp_path / "gate.log.1").exists()


def test_a_full_disk_is_told_with_the_place_and_what_to_do(tmp_path, monkeypatch):
    break_at("fsync", FULL, monkeypatch)
    with pytest.raises(StorageError) as refusal:
        write_atomically(tmp_path / "report.json", NEW)
    assert "report.json cannot be written: No space left on device" in refusal.value.what
    assert "free space" in refusal.value.fix


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "report.json", NEW)
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path, NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}-*"))
