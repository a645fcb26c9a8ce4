"""A program as a fork of this process, which has loaded everything: it starts in milliseconds, not in seconds."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from grandrounds.common.system.processes import die_with, environment


class Forked:
    """``act`` in a process of its own, as if Python had just called it; ``out`` and ``err`` get what it prints."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._folder.name, name) for name in ("out", "err"))
        self.out.touch()
        parent, self.pid = os.getpid(), os.fork()
        if not self.pid:
            die_with(parent)
            self._do(act)

    def _do(self, act: Callable[[], object]) -> None:
        status = 1
        try:
            os.environ.update(environment())
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdout, sys.stderr = self.out.open("w", buffering=1), self.err.open("w", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
            act()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> int:
        """How it ended; minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def forked(act: Callable[[], object]) -> tuple[int, str, str]:
    """How it ended, and what it printed and complained of."""
    program = Forked(act)
    return program.wait(), program.out.read_text(), program.err.read_text()


def commanded(*arguments: object) -> Callable[[], None]:
    """What the command ``grandrounds`` does with these."""

    def act() -> None:
        from grandrounds.deploy.cli.main import main

        sys.argv = ["grandrounds", *map(str, arguments)]
        main()

    return act
