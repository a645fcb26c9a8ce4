"""Processes that are watched and stopped by their ids, and outlive nobody."""

import os
import select
import signal
import subprocess
import sys

import pytest

from grandrounds.common.system.processes import Process, environment


def started(log, program, **extra):
    """A Python program, once it has said that it is up."""
    process = Process([sys.executable, "-c", program], log=log, env=environment(**extra))
    while not log.read_text().endswith("up\n"):
        assert process.running or log.read_text().endswith("up\n"), log.read_text()
    return process


def test_a_process_is_stopped_by_a_signal_that_it_can_heed(tmp_path):
    heeds = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print('up'); signal.pause()"
    process = started(tmp_path / "log", heeds)
    assert process.running
    assert process.exit_code is None
    process.stop()
    assert not process.running
    assert process.exit_code == 3
    process.stop()  # again: nothing happens
    assert process.exit_code == 3


def test_a_process_that_does_not_heed_it_is_killed(tmp_path):
    process = started(
        tmp_path / "log",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\nwhile True: signal.pause()",
    )
    process.stop(grace_s=0.1)
    assert process.exit_code == -signal.SIGKILL


def test_what_it_says_is_added_to_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    started(log, "import sys; print('said'); print('up', file=sys.stderr)").stop()
    assert log.read_text() == "before\nsaid\nup\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_with_who_started_it(tmp_path, how):
    child = "import signal; print('up'); signal.pause()"
    parent = (
        "import pathlib, signal, sys\n"
        "from grandrounds.common.system.processes import Process, environment\n"
        f"print(Process([sys.executable, '-c', {child!r}], log=pathlib.Path(sys.argv[1]), env=environment()).pid)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", parent, tmp_path / "log"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        ended = os.pidfd_open(int(started.stdout.readline()))
        started.send_signal(how)
        started.wait()
    assert select.select([ended], [], [], 60)[0], "its child is still there"
    os.close(ended)


POOL = """
import signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from grandrounds.common.system.processes import end_with_parent
if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context(sys.argv[1]), initializer=end_with_parent) as pool:
        pool.submit(int).result()
        pool.submit(time.sleep, 1000)
        print(active_children()[0].pid, flush=True)
        signal.pause()
"""


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_of_a_pool_ends_with_who_started_it_whatever_it_does(tmp_path, how, start):
    program = tmp_path / "program.py"
    program.write_text(POOL)
    command = [sys.executable, program, start]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        ended = os.pidfd_open(child := int(parent.stdout.readline()))
        parent.send_signal(how)
        parent.wait()
    if not (has_ended := select.select([ended], [], [], 60)[0]):
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    assert has_ended, "a process of its pool was still there"


def test_flower_reports_nothing_and_no_proxy_stands_between_programs_of_one_machine(monkeypatch):
    monkeypatch.setenv("no_proxy", "hospital.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    variables = environment(EXTRA="1")
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["no_proxy"] == variables["NO_PROXY"] == "hospital.example,127.0.0.1,localhost"
    assert (variables["https_proxy"], variables["EXTRA"]) == ("http://proxy.example", "1")
