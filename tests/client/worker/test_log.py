"""A site's log: lines of JSON that only ever grow, without the text of any error that could quote a record."""

import json
import logging
import os
import stat
import subprocess
import sys

import pytest

from grandrounds.client.worker.log import log_to
from grandrounds.common.errors import DataError, StorageError

NAME = "Mrs Abernathy"
LOG = logging.getLogger("grandrounds.client.worker.worker")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "worker.log"
    handler = log_to(path)
    yield path
    logging.getLogger("grandrounds").removeHandler(handler)
    handler.close()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_how_bad_and_what_and_of_which_exchange(path):
    LOG.warning("%s refuses", "site-2", extra={"exchange": "begin", "attempt": 3, "code": "serial"})
    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "event": "site-2 refuses",
        "exchange": "begin",
        "attempt": 3,
        "code": "serial",
    }


@pytest.mark.parametrize("say", [lambda error: LOG.error("failed: %s", error), LOG.error, LOG.exception])
def test_an_error_is_named_by_its_type_alone(path, say):
    try:
        raise ValueError(f"no page for {NAME}")
    except ValueError as error:
        say(error)
    assert "ValueError" in path.read_text(encoding="utf-8")
    assert "Abernathy" not in path.read_text(encoding="utf-8")


def test_an_error_of_this_program_is_told_whole(path):
    LOG.error("failed: %s", DataError("line 3 is not UTF-8", why="it was not read", fix="save it as UTF-8"))
    (line,) = lines(path)
    assert line["event"] == (
        "failed: line 3 is not UTF-8. Why it matters: it was not read. What to do: save it as UTF-8."
    )


def test_a_line_break_in_an_event_makes_no_second_line(path):
    LOG.warning("one\n{}")
    assert len(lines(path)) == 1


def test_what_other_libraries_log_is_left_out(path):
    logging.getLogger("transformers").error(NAME)
    assert path.read_text() == ""


def test_the_log_goes_on_in_a_new_file_where_its_file_was_renamed(path):
    LOG.info("first")
    path.rename(path.with_suffix(".1"))
    LOG.info("second")
    assert [line["event"] for line in lines(path)] == ["second"]
    assert [line["event"] for line in lines(path.with_suffix(".1"))] == ["first"]


def test_the_log_goes_on_at_the_end_where_its_file_was_cut(path):
    LOG.info("first")
    os.truncate(path, 0)
    LOG.info("second")
    assert [line["event"] for line in lines(path)] == ["second"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_log_is_open_to_its_group_and_to_nobody_else_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        handler = log_to(tmp_path / "worker.log")
    finally:
        os.umask(before)
    logging.getLogger("grandrounds").removeHandler(handler)
    handler.close()
    assert stat.S_IMODE((tmp_path / "worker.log").stat().st_mode) == 0o640


def test_a_log_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        log_to(tmp_path / "missing" / "worker.log")


def test_an_exception_that_ends_a_worker_is_told_without_its_text():
    probe = "from grandrounds.client.worker.log import hide_texts\nhide_texts()\nint('no complaints')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError" in done.stderr and "line 3" in done.stderr
    assert "no complaints" not in done.stderr
