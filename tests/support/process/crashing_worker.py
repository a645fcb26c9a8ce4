"""A site's worker as a process of its own, which dies at a named point.

Its folder holds ``manifest.json``, ``key`` and the state of ``site-2``. At the point it ends as if it were killed.
"""

import contextlib
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.worker import Worker
from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.study.manifest import Manifest
from support.process.resident_process import PROCESSES, SITE

KILLED = 9


def run(folder: Path, point: str | None, requests: Connection) -> None:
    """What the process does with each of ``requests``, until there are no more."""

    def reach(reached: str) -> None:
        if reached == point:
            os._exit(KILLED)

    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    budget = SiteState.open(folder / "state", reach=reach)
    reservations = Reservations(budget.database)
    reservations.register(Asset.synthetic("records"))
    reservations.reserve("records", manifest.study_id, Amounts())
    worker = Worker(
        name=SITE,
        identity=Identity.from_bytes((folder / "key").read_bytes()),
        manifest=manifest,
        release=lambda adapter, mechanism: np.ones(manifest.dimension, "<u4"),
        state=budget,
    )
    while (request := requests.recv()) is not None:
        requests.send(worker.handle(request))


class CrashingWorker:
    """The worker of a federation's site, started anew by ``start``."""

    def __init__(self, folder: Path, federation: Any) -> None:
        self.folder = folder
        (folder / "manifest.json").write_bytes(canonical_json(federation.manifest.model_dump(mode="json")))
        (folder / "key").write_bytes(federation.identities[SITE].secret)

    def start(self, point: str | None = None) -> None:
        self._requests, there = PROCESSES.Pipe()
        self._process = PROCESSES.Process(target=run, args=(self.folder, point, there), daemon=True)
        self._process.start()
        there.close()

    def handle(self, request: bytes) -> bytes | None:
        """The answer, or None from a worker that died."""
        try:
            self._requests.send(request)
            answer: bytes = self._requests.recv()
        except (EOFError, OSError):
            return None
        return answer

    def stop(self) -> int | None:
        """How it ended."""
        with contextlib.suppress(OSError):
            self._requests.send(None)
        self._process.join()
        return self._process.exitcode
