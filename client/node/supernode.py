"""A site's SuperNode and the relay that serves it: they live and die together.

Three states of a SuperNode look alive and are not: its main loop ended by an error while its other threads go on; it
waits for an answer that no task will give; it is one answer behind. Its memory is all its state, so the cure is one:
end both and start both. SIGTERM comes first, since the server takes a killed node for connected for up to a minute,
and refuses it until then. Why it was done, its own log says (``LOG``).
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.errors import StorageError
from ...common.system.files import last_line, size_of, trim_log, without_colours
from ...common.system.flower_program import flower_program
from ...common.system.ports import cannot_listen, holder
from ...common.system.processes import CARRIER, Process, environment
from ...common.system.supervision import WATCH_S, Pauses

LOG: Final = "node.log"  # of the process that keeps both running
NODE_LOG, RELAY_LOG = "supernode.log", "relay.log"
_LONGEST_PAUSE_S: Final = 15.0
_LONGEST_REASON: Final = 400  # characters
_GRACE_S: Final = 10.0
# A line of Flower's own loops, after which a SuperNode may live on half dead. What begins with a path is its answer to
# who asked at its port of loopback, as any program of this machine may, and lines of its HTTP server look otherwise.
_FATAL: Final = re.compile(rb"(?:\x1b\[\d+m)?ERROR (?:\x1b\[0m)?: +(?! |\[/)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Supernode:
    """What a site's machine runs towards the server. Only outbound connections; ``runtime_port`` is on loopback.

    ``address`` is the server's (host:port); ``folder`` gets the logs of both, and messages that come in pieces, of at
    most ``largest_bytes``. ``app_sha256`` is the pinned archive's.
    """

    address: str
    certificates: Path
    node_key: Path
    secret: Path
    socket: Path
    app_sha256: str
    runtime_port: int
    folder: Path
    timeout_s: float
    largest_bytes: int

    def run(self, stopped: Callable[[], bool]) -> None:
        """Keep both running until ``stopped``."""
        pauses = Pauses(_LONGEST_PAUSE_S)
        while not stopped():
            started = time.monotonic()
            self._once(stopped)
            ended = time.monotonic()
            resume = ended + pauses.after(ended - started)
            while not stopped() and time.monotonic() < resume:
                time.sleep(WATCH_S)

    def _once(self, stopped: Callable[[], bool]) -> None:
        self.folder.mkdir(exist_ok=True)
        if (error := cannot_listen(("127.0.0.1", self.runtime_port))) is not None:
            what = "port %d of loopback, for the SuperNode, cannot be had: %s; %s"
            _log.error(what, self.runtime_port, error.strerror, holder(self.runtime_port))
            return
        node_log, relay_log = self.folder / NODE_LOG, self.folder / RELAY_LOG
        errors, said_before = _Errors(node_log), size_of(relay_log)
        env = environment(FLWR_HOME=str(self.folder / "flower"), **CARRIER)
        node = Process(self._supernode(), log=node_log, env=env)
        relay = Process(self._relay(), log=relay_log, env=env)
        _log.info("SuperNode %d and relay %d are up", node.pid, relay.pid)
        try:
            said = ""
            while not stopped() and node.running and relay.running and not said:
                with suppress(OSError, StorageError):
                    for log in (self.folder / LOG, node_log, relay_log):
                        trim_log(log)
                time.sleep(WATCH_S)
                said = errors.found()
            if stopped():
                _log.info("SuperNode and relay are stopped")
            elif relay.running:
                _log.error("the SuperNode ended: %s", said or last_line(node_log))
            else:
                _log.error("the relay ended: %s", last_line(relay_log, since=said_before))
        finally:
            relay.stop(_GRACE_S)
            node.stop(_GRACE_S)

    def _supernode(self) -> Sequence[str | Path]:
        return [
            *flower_program("flower-supernode"),
            *("--superlink", self.address),
            *("--root-certificates", self.certificates),
            *("--auth-supernode-private-key", self.node_key),
            *("--port", str(self.runtime_port)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", self.secret),
        ]

    def _relay(self) -> Sequence[str | Path]:
        runtime = f"127.0.0.1:{self.runtime_port}"
        relay = [sys.executable, "-P", "-m", f"{__package__}.relay"]  # -P: no module of the working directory
        pieces = (self.folder / "pieces", str(self.largest_bytes))
        return [*relay, runtime, self.secret, self.socket, self.app_sha256, str(self.timeout_s), *pieces]


class _Errors:
    """What a log has got since, from a line on that is known to be of an error after which its SuperNode has to end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = size_of(path)

    def found(self) -> str:
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read:  # what was read was put aside
                self._read = 0
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = whole.split(b"\n")
        first = next((number for number, line in enumerate(lines) if _FATAL.match(line)), len(lines))
        return " ".join(without_colours(b" ".join(lines[first:])).split())[:_LONGEST_REASON]
