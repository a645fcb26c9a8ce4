"""What runs on a server's machine while sites may connect: Flower's SuperLink, its executor, and the gate."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...common.errors import StudyError
from ...common.system.files import last_line
from ...common.system.flower_program import flower_program
from ...common.system.ports import await_free, listens
from ...common.system.processes import CARRIER, environment
from ...common.system.supervision import WATCH_S, Program
from ...server.run.server_folder import SETTINGS, ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY

_START_S: Final = 60.0


@dataclass(kw_only=True)
class ServerPrograms:
    """Keeps them running: one that ends is started again, after a pause that grows while it ends at once.

    ``say`` is told of each event. While the SuperLink is away the gate answers 503, at which nodes try again.
    """

    folder: ServerFolder
    say: Callable[[str], None]
    patience_s: float = 30.0  # for a port: a SuperLink whose supervisor was killed takes a while to end
    _running: list[Program] = field(default_factory=list)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Start them, each once the one before it answers; stop them at the end. Raises StudyError."""
        settings = self.folder.settings()
        addresses = {"superlink": settings.superlink_address, "gate": (settings.bind, settings.port)}
        if settings.port == settings.superlink_port:
            raise StudyError(
                f"port and superlink_port in {self.folder.path / SETTINGS} are both {settings.port}",
                why="the gate and the SuperLink each listen on a port of their own",
                fix="change superlink_port, which no site knows",
            )
        self._await_free("the SuperLink", addresses["superlink"], "superlink_port in server.toml, which no site knows")
        gate = f"port in server.toml; sites then need a new study.zip (grandrounds server bundle {self.folder.path})"
        self._await_free("the gate", addresses["gate"], gate)
        try:
            for name, command in self._commands().items():
                program = Program(name, command, log=self._log(name), env=self._env, say=self.say)
                self._running.append(program)
                self._await(program, addresses.get(name))
            yield
        finally:
            # The SuperLink waits for its open connections longer than it is given: its database bears being killed.
            for program in reversed(self._running):
                program.stop()

    @property
    def running(self) -> tuple[Program, ...]:
        """What is up, to be tended: what ends is then started again."""
        return tuple(self._running)

    def _await(self, program: Program, address: tuple[str, int] | None) -> None:
        """Until it listens. Raises StudyError."""
        deadline = time.monotonic() + _START_S
        while address is not None and not listens(address):
            if not program.running or time.monotonic() > deadline:
                raise StudyError(
                    f"{program.name} does not start",
                    why="without it no site reaches the study",
                    fix=f"{program.log} says what it met; its last line: {last_line(program.log)}",
                )
            time.sleep(WATCH_S)

    def _await_free(self, program: str, address: tuple[str, int], setting: str) -> None:
        await_free(address, program=program, setting=setting, patience_s=self.patience_s, say=self.say)

    @property
    def _env(self) -> dict[str, str]:
        flower = {"FLWR_HOME": str(self.folder.flower_home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        return environment(**flower, **CARRIER)

    def _log(self, name: str) -> Path:
        return self.folder.flower / f"{name}.log"

    def _commands(self) -> dict[str, Sequence[str | Path]]:
        folder, settings = self.folder, self.folder.settings()
        inside = folder.inside.absolute()
        return {
            "superlink": [
                *flower_program("flower-superlink"),
                *("--host", "127.0.0.1", "--port", str(settings.superlink_port)),
                *("--ssl-ca-certfile", inside / CA_CERTIFICATE),
                *("--ssl-certfile", inside / CERTIFICATE, "--ssl-keyfile", inside / CERTIFICATE_KEY),
                "--enable-supernode-auth",
                *("--isolation", "process", "--superexec-auth-secret-file", folder.secret),
                "--disable-runtime-dependency-installation",
                *("--database", folder.flower / "superlink.db"),
            ],
            "superexec": [
                *flower_program("flower-superexec"),
                *("--runtime-api-address", settings.superlink, "--root-certificates", inside / CA_CERTIFICATE),
                *("--superexec-auth-secret-file", folder.secret),
            ],
            "gate": [sys.executable, "-P", "-m", f"{__package__}.gate", folder.path],
        }
