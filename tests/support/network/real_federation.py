"""A federation of real processes on loopback, run by the commands that its operators type, and killed."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from grandrounds.common.study.artefacts import LEDGER
from grandrounds.common.system.ports import listens
from grandrounds.common.system.processes import PROGRAM, Process, environment
from grandrounds.deploy.bench.loopback import LoopbackFederation, descendants
from support.ledger.left_on_disk import Left
from support.process.forked import commanded, forked

SITES = ("north", "south", "west")


class RealFederation(LoopbackFederation):
    """Server and sites in ``path``; ``start`` starts their processes, ``stop`` stops them."""

    def __init__(self, path: Path, *, rounds: int = 1, max_attempts: int = 3, **options: Any) -> None:
        super().__init__(path, sites=SITES, rounds=rounds, max_attempts=max_attempts, **options)
        self.server = self.folder.path

    def start(self, *names: str) -> None:
        """As ``LoopbackFederation``; all of it, sites once the server is open: a node that finds none starts again."""
        if not names:
            super().start("server")
            deadline = time.monotonic() + 300
            while not listens(("localhost", self.gate)):
                assert time.monotonic() < deadline, (self.path / "server.log").read_text()
                time.sleep(0.2)
        super().start(*(names or self.sites))

    def call(self, *arguments: str | Path, fails: bool = False) -> str:
        """What a command prints; it succeeds, or ``fails`` with a diagnosis."""
        status, said, complaint = forked(commanded(*arguments))
        assert status == int(fails), said + complaint
        return complaint if fails else said

    def kill(self, *names: str) -> None:
        """SIGKILL, to them and to all that they have started."""
        for name in names:
            process = self.processes.pop(name)
            below = descendants(process.pid)
            process.kill()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill_worker(self, site: str) -> None:
        """SIGKILL, to a site's worker; who started it starts it again."""
        os.kill(self.worker(site), signal.SIGKILL)

    def worker(self, site: str) -> int:
        """The process that has the site's records in this study."""
        below = descendants(self.processes[site].pid)
        names = {b"worker", self.study_of(site).name.encode()}
        (worker,) = [pid for pid in below if names <= {*Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")}]
        return worker

    def running(self) -> Process:
        """``server run`` as a process of its own."""
        command: list[str | Path] = [PROGRAM, "server", "run", self.server]
        return Process(command, log=self.path / "run.log", env=environment())

    def until(self, event: str, count: int = 1) -> None:
        """Wait until the progress has told ``event`` so many times."""
        deadline = time.monotonic() + 300
        while sum(line["event"] == event for line in self.progress()) < count:
            assert time.monotonic() < deadline, f"no {event}"
            time.sleep(0.2)

    def progress(self) -> list[dict]:
        path = self.server / "progress.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self) -> list[dict]:
        """The study, carried out or gone on with; its events."""
        return [json.loads(line) for line in self.call("server", "run", self.server, "--json").splitlines()]

    def on_disk(self) -> Left:
        """What is on disk now."""
        return Left.by(self.server / "study" / LEDGER, {site: self.path / site / "state" for site in self.sites})

    def status(self) -> dict:
        return json.loads(self.call("server", "status", self.server, "--json"))
