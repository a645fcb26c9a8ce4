"""A site's resident worker as a process of its own, without model or records, and attempts in which it answers.

Processes are forked from one that has loaded the program and nothing else, so that each starts in milliseconds.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
from typing import Any

import numpy as np

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.training.ranks import RankLost
from grandrounds.client.worker.listener import serve
from grandrounds.client.worker.log import log_to
from grandrounds.client.worker.service import WorkerService
from grandrounds.client.worker.worker import Worker
from grandrounds.client.worker_socket import connect
from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Refusal
from grandrounds.common.study.manifest import Manifest

SITE = "site-2"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["grandrounds.client.worker.listener"])


def ones(manifest, site):
    return lambda adapter, mechanism: np.ones(manifest.dimension, "<u4")


def refusal(answer):
    return Refusal.of(Envelope.parse(answer)).code


def finish(federation, attempt, exchange):
    """The attempt to its end, with ``exchange`` for the site."""
    while not (attempt.done or attempt.aborted):
        step(federation, attempt, exchange)
    return attempt


def step(federation, attempt, exchange):
    for site, message in attempt.messages().items():
        attempt.receive(site, exchange(message) if site == SITE else federation.workers[site].handle(message))
    attempt.advance()


def run(folder, patience_s, users, up):
    """What the process does; ``up`` is closed once it answers. What it prints is in FOLDER/errors.

    An update waits for FOLDER/hold, a FIFO, to be opened and closed, if there is one; FOLDER/paused pauses the site. It
    has lost a device where there is FOLDER/lost.
    """
    sys.stderr = (folder / "errors").open("w")

    class Up(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "up":
                up.send("up")

    logging.getLogger("grandrounds").addHandler(Up())
    log_to(folder / "worker.log")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    budget = SiteState.open(folder / "state")
    reservations = Reservations(budget.database)
    reservations.register(Asset.synthetic("records"))
    reservations.reserve("records", manifest.study_id, Amounts())

    def release(adapter, mechanism):
        if (folder / "hold").exists():
            (folder / "hold").read_bytes()
        if (folder / "lost").exists():
            raise RankLost("the process that computes on cuda:1 has ended")
        return np.ones(manifest.dimension, "<u4")

    resident = WorkerService(
        Worker(
            name=SITE,
            identity=Identity.from_bytes((folder / "key").read_bytes()),
            manifest=manifest,
            release=release,
            state=budget,
        ),
        is_paused=(folder / "paused").exists,
    )
    serve(resident, folder / "run" / "worker.sock", users=users, patience_s=patience_s)


class ResidentProcess:
    """The site's resident process, started anew by ``start``; killed at the end of the ``with``."""

    def __init__(self, folder, federation):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.socket = folder / "run" / "worker.sock"
        self.process: Any = None  # until it answers
        (folder / "manifest.json").write_bytes(canonical_json(federation.manifest.model_dump(mode="json")))
        (folder / "key").write_bytes(federation.identities[SITE].secret)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process is not None:
            self.kill()

    def start(self, *, users=(), patience_s=60.0):
        assert self.fails_to_start(users=users, patience_s=patience_s) is None

    def fails_to_start(self, *, users=(), patience_s=60.0):
        """What a process says that ends before it answers; None for one that answers."""
        reading, writing = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=run, args=(self.folder, patience_s, users, writing))
        process.start()
        writing.close()
        try:
            reading.recv()
        except EOFError:
            process.join()
            return self.errors()
        self.process = process
        return None

    def kill(self):
        self.process.kill()
        self.process.join()

    def stop(self):
        self.process.terminate()
        self.ends()

    def ends(self):
        """Waits for the end of the process, which is an orderly one."""
        self.process.join()
        assert self.process.exitcode == 0

    def errors(self):
        return (self.folder / "errors").read_text()

    def log(self):
        return [json.loads(line) for line in (self.folder / "worker.log").read_text().splitlines()]

    def exchange(self, request):
        return connect(self.socket, timeout_s=60)(request)

    def ask(self, federation, attempt, exchanges=1):
        """The attempt's next exchanges, this site's over the socket."""
        for _ in range(exchanges):
            step(federation, attempt, self.exchange)

    @contextlib.contextmanager
    def holding_its_update(self, attempt):
        """While the site computes its update for whoever asked for it; afterwards, what the site answered."""
        answers = []
        asking = threading.Thread(target=lambda: answers.append(self.exchange(attempt.messages()[SITE])))
        os.mkfifo(self.folder / "hold")
        asking.start()
        with self.held_update():
            yield answers
        asking.join()

    @contextlib.contextmanager
    def held_update(self):
        """From when the worker waits at FOLDER/hold until the end of the ``with``, or ``release_update``."""
        self.held: int | None = os.open(self.folder / "hold", os.O_WRONLY)  # once the worker has opened it, too
        (self.folder / "hold").unlink()
        try:
            yield
        finally:
            self.release_update()

    def release_update(self):
        if self.held is not None:
            os.close(self.held)
            self.held = None
