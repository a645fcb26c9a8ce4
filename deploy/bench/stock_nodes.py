"""Flower's own SuperNodes with its own executor, beside a study's sites, and how long an empty message takes there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...common.errors import StudyError
from ...common.system.ports import listens
from ...common.system.processes import Process, environment
from ...common.system.supervision import stop_all
from ...server.run.server_folder import ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE
from ..enrolment.node_keys import make_node_key
from ..server_ops.flwr import FlowerControl
from .loopback import descendants, free_ports

_APP: Final = Path(__file__).parent / "empty_app"
_WARM_UP: Final = 1  # of the first block: each node fetches and unpacks the app
_START_S: Final = 60.0
_TRIP_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.2


@dataclass(kw_only=True)
class StockNodes:
    """``count`` nodes of a server's SuperLink, enrolled by keys of their own, through its gate; all below ``path``."""

    server: ServerFolder
    path: Path
    count: int
    _processes: list[Process] = field(default_factory=list)
    _blocks: int = 0

    def start(self) -> None:
        """Enroll the nodes, once the server is up, and start them. Raises StudyError."""
        settings, flower = self.server.settings(), FlowerControl(self.server)
        _await(lambda: listens(("127.0.0.1", settings.port)), _START_S, "the gate is not open")
        for name, port in zip(self._names, free_ports(self.count), strict=True):
            folder = self.path / name
            folder.mkdir()
            make_node_key(folder / "node.key", folder / "node.pub")
            with self.server.enrolling():
                flower.register(name, (folder / "node.pub").read_text())
            command: list[str | Path] = [
                *(Path(sys.executable).with_name("flower-supernode"), "--superlink", settings.address),
                *("--root-certificates", self.server.certificates / CA_CERTIFICATE),
                *("--auth-supernode-private-key", folder / "node.key"),
                *("--port", str(port), "--isolation", "subprocess"),
            ]
            env = environment(FLWR_HOME=str(folder / "flower"))
            self._processes.append(Process(command, log=folder / "supernode.log", env=env))

    def trips(self, count: int) -> list[float]:
        """Seconds of ``count`` empty round trips to all nodes, one after the other, once the nodes are warm.

        A run of its own on the SuperLink, whose ServerApp is at its end when this returns. Raises StudyError.
        """
        warm_up, self._blocks = 0 if self._blocks else _WARM_UP, self._blocks + 1
        total, times = warm_up + count, (self.path / f"trips-{self._blocks}.json").absolute()
        config = f'nodes="{" ".join(self._names)}" trips={total} times={json.dumps(str(times), ensure_ascii=False)}'
        done = subprocess.run(
            [Path(sys.executable).with_name("flwr"), "run", _APP, "--run-config", config],
            env=environment(FLWR_HOME=str(self.server.flower_home)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _failed(f"flwr run: {' '.join((done.stdout + done.stderr).split())[:400]}")
        _await(times.exists, _START_S + total * _TRIP_S, "the empty messages are not all back")
        seconds: list[float] = json.loads(times.read_bytes())
        return seconds[warm_up:]

    def stop(self) -> None:
        """End the nodes, and before each its executor, of which Flower takes no care."""
        for pid in (pid for process in self._processes for pid in descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        stop_all(self._processes, grace_s=_STOP_S)
        self._processes.clear()

    @property
    def _names(self) -> list[str]:
        return [f"stock-{number}" for number in range(1, self.count + 1)]


def _await(holds: Callable[[], bool], patience_s: float, otherwise: str) -> None:
    """Until it holds. Raises StudyError."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise _failed(f"{otherwise} after {patience_s:g} s")
        time.sleep(_POLL_S)


def _failed(what: str) -> StudyError:
    return StudyError(
        what,
        why="a study's exchanges are measured beside messages that Flower itself carries",
        fix="see that the machine has memory and processors to spare; then measure again",
    )
