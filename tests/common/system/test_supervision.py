"""Programs that are kept running."""

import errno
import sys

import pytest

from grandrounds.common.system import supervision
from grandrounds.common.system.processes import environment
from grandrounds.common.system.supervision import Pauses, Program, tend


def test_pauses_grow_up_to_the_longest_while_it_ends_at_once_and_are_short_after_it_lived():
    pauses = Pauses(longest_s=10.0)
    assert [pauses.after(1.0) for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert pauses.after(61.0) == 1.0
    assert pauses.after(1.0) == 2.0


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_S", 0.0)


def test_a_program_that_ends_is_told_of_and_started_again_and_one_that_does_not_is_left(tmp_path, hurried):
    said: list[str] = []
    commands = {"ends": "print('no data'); raise SystemExit(3)", "stays": "import signal; signal.pause()"}
    programs = [
        Program(name, [sys.executable, "-c", text], log=tmp_path / name, env=environment(), say=said.append)
        for name, text in commands.items()
    ]
    tend(programs, lambda: sum("ends started" in line for line in said) == 3)
    for program in programs:
        program.stop()
    ends = [line for line in said if line.startswith("ends ended")]
    assert ends[0] == f"ends ended (3): no data (more in {tmp_path / 'ends'}); again in 0 s"
    assert "(3): the same as before (more" in ends[1]
    assert sum("stays started" in line for line in said) == 1
    assert said[-1] == "stays stopped"


def ends_at_once(log, say):
    return Program("it", [sys.executable, "-c", "raise SystemExit(3)"], log=log, env=environment(), say=say)


def test_a_full_disk_that_takes_no_line_ends_nobody_who_keeps_programs_running(tmp_path, hurried):
    said = []

    def say(line):
        said.append(line)
        raise OSError(errno.ENOSPC, "no space left")

    program = ends_at_once(tmp_path / "log", say)
    tend([program], lambda: len(said) == 4)
    program.stop()
    assert [line.split()[1] for line in said] == ["started,", "ended", "started,", "ended", "stopped"]
    assert "ended (3): without a word" in said[1]


def test_a_program_that_cannot_be_started_again_for_now_is_tried_until_it_can(tmp_path, hurried):
    said: list[str] = []
    folder = tmp_path / "logs"
    folder.mkdir()
    program = ends_at_once(folder / "log", said.append)
    folder.rename(tmp_path / "away")
    tend([program], lambda: sum("cannot be started (No such file or directory)" in line for line in said) == 2)
    (tmp_path / "away").rename(folder)
    tend([program], lambda: sum("started, process" in line for line in said) == 2)
    program.stop()
