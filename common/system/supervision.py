"""Programs that are kept running: one that ends is started again, after pauses that grow while it ends at once."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..errors import StorageError
from .files import last_line, size_of, trim_log
from .privileges import User
from .processes import Process

WATCH_S: Final = 0.2
_FIRST_PAUSE_S: Final = 1.0
_SETTLED_S: Final = 60.0  # after so long it was no failure to start


class Pauses:
    """How long to wait before something that ended is started again: twice as long each time that it ended at once."""

    def __init__(self, longest_s: float = 30.0) -> None:
        self._longest_s = longest_s
        self._last_s = _FIRST_PAUSE_S

    def after(self, lived_s: float) -> float:
        """The pause, in seconds, after it lived for ``lived_s``."""
        self._last_s = _FIRST_PAUSE_S if lived_s > _SETTLED_S else min(2 * self._last_s, self._longest_s)
        return self._last_s


class Program:
    """A child that is kept running. ``say`` is told of each event; what the program itself says goes to ``log``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        say: Callable[[str], None],
        user: User | None = None,
        offline: bool = False,
    ) -> None:
        """Start it, as ``Process`` does. Raises OSError."""
        self.name = name
        self.log = log
        self._say = say
        self._make = partial(Process, command, log=log, env=env, user=user, offline=offline)
        self._pauses = Pauses()
        self._started = time.monotonic()
        self._resume: float | None = None
        self._last_said = ""
        self._process = self._started_process()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.running

    def tend(self) -> None:
        """Start it again, if it has ended and its pause is over; where it cannot be, it is tried again later.

        Its log is kept from growing without end.
        """
        with suppress(OSError, StorageError):
            trim_log(self.log)
        if self._process.running:
            return
        if self._resume is None:
            said = last_line(self.log, since=self._said_before) or "without a word"
            shown, self._last_said = "the same as before" if said == self._last_said else said, said
            what = f"ended ({self._process.exit_code}): {shown} (more in {self.log})"
            self._pause(what, lived_s=time.monotonic() - self._started)
        elif time.monotonic() >= self._resume:
            try:
                self._process = self._started_process()
            except OSError as error:
                self._pause(f"cannot be started ({error.strerror})", lived_s=0.0)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL if it has not ended within ``grace_s``."""
        self._process.stop(grace_s)
        self._tell("stopped")

    def _started_process(self) -> Process:
        self._said_before = size_of(self.log)
        process, self._started, self._resume = self._make(), time.monotonic(), None
        self._tell(f"started, process {process.pid}")
        return process

    def _pause(self, what: str, *, lived_s: float) -> None:
        pause_s = self._pauses.after(lived_s)
        self._resume = time.monotonic() + pause_s
        self._tell(f"{what}; again in {pause_s:g} s")

    def _tell(self, what: str) -> None:
        with suppress(OSError):  # on a full disk nothing can be said, and what runs goes on
            self._say(f"{self.name} {what}")


def stop_all(running: Collection[Process | Program], *, grace_s: float) -> None:
    """End them, all at once; SIGKILL for those that have not ended after ``grace_s``."""
    for each in running:
        each.terminate()
    for each in running:
        each.stop(grace_s)


class Tended(Protocol):
    """What is looked after while programs run: a program, or what else has to be seen to now and then."""

    def tend(self) -> None:
        """See to it; called several times a second."""


def tend(all_: Sequence[Tended], stopped: Callable[[], bool]) -> None:
    """Keep all of them running until ``stopped``."""
    while not stopped():
        for each in all_:
            each.tend()
        time.sleep(WATCH_S)
