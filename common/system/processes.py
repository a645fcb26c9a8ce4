"""Processes that a command starts, watches and stops, each by its own id."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Final

from .privileges import LIBC, User, become, leave_networks

PROGRAM: Final = Path(sys.executable).with_name("grandrounds")  # this installation's
_PR_SET_PDEATHSIG: Final = 1
# Flower reports usage and asks for updates unless told otherwise.
QUIET_FLOWER: Final = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
# Of programs that carry large messages: what they free of these goes back to the system (mallopt(3)). Else each of
# their threads keeps some, and together they hold many times what is on its way.
CARRIER: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 22), "MALLOC_ARENA_MAX": "2"}
ENVIRONMENT: Final = {**QUIET_FLOWER, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for its children: no telemetry, and no proxy between programs of one machine."""
    # Flower starts its programs by name: those of this installation.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {**os.environ, **ENVIRONMENT, **without_proxy(), "PATH": path, **extra}


def without_proxy() -> dict[str, str]:
    """What of an environment keeps calls to this machine from a proxy."""
    given = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    hosts = ",".join(dict.fromkeys(filter(None, (*given, "127.0.0.1", "localhost"))))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


class Process:
    """One child; its output is appended to ``log``.

    It is sent SIGTERM when the thread that started it ends, in whatever way, so that none is left behind.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        user: User | None = None,
        offline: bool = False,
    ) -> None:
        """Start it, where this is root's also as another ``user``; without a network, if it may be ``offline``.

        Raises OSError where the user can start no such program, or the log cannot be opened.
        """
        parent = os.getpid()

        def begin() -> None:
            if offline:
                leave_networks()
            if user is not None:
                become(user)
            die_with(parent)  # last: who becomes another user is asked anew

        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env={**env, "HOME": user.home} if user else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=begin,
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it did."""
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM."""
        if self.running:
            self._process.terminate()

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL if it has not ended within ``grace_s``."""
        self.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


def die_with(parent: int) -> None:
    """In a new child: be sent SIGTERM when ``parent`` dies, and end at once if it has died already (prctl(2))."""
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def end_with_parent() -> None:
    """In a process of multiprocessing: end at once when the one that started it ends, in whatever way.

    A pool's process would compute what nobody waits for, and then wait for ever: its pipes are open at its own end.
    """
    Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)  # whatever the other threads compute or wait for
