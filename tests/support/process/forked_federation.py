"""A federation of processes of one program: a server and its sites, each with its folder, which die where a test says.

Worker, budget, server and study folder are the real ones. A site's update is random numbers, a model is its vector of
trained numbers, and pipes take the place of the network, so that a study takes a fraction of a second. Processes are
forked from this one, which has loaded everything. What a process does not survive is SIGKILL, which it sends itself.
"""

import math
import os
import secrets
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from grandrounds.client.budget.agreement import join
from grandrounds.client.budget.patients import FingerprintKey, Patients
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.service import WorkerService
from grandrounds.client.worker.worker import Worker
from grandrounds.common.data.tokenisation import EvaluationSet
from grandrounds.common.errors import ProtocolError
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.model.adapter import Vector, vector_sha256
from grandrounds.common.model.perplexity import RecordLosses
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.study.artefacts import CONFIG, LEDGER, WEIGHTS
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.system.processes import die_with
from grandrounds.server.rounds.checkpoint import Checkpoint
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.run.study_folder import StudyFolder
from grandrounds.server.run.study_run import StudyRun, check_ledger_of
from support.ledger.left_on_disk import Left
from support.study import allowed_study
from support.study.verified_study import FROZEN, TRAINED, WHOLE, A, config_of

SITES = tuple(allowed_study.IDENTITIES)
SERVER = "server"
ROUNDS = 2
FAILED, UNSIGNED = 1, 3
# An exchange is named after its answer.
ANSWERED_BY = {
    "invitation": "agreed",
    "begin": "advert",
    "adverts": "shares",
    "ciphertexts": "masked-input",
    "survivors": "consistency",
    "consistencies": "unmask",
    "close": "closed",
}


@cache
def study_of(max_attempts: int) -> Manifest:
    """The study's manifest with so many attempts for its rounds."""
    return allowed_study.manifest(
        privacy={"sampling_probability": 0.25},
        training={"rounds": ROUNDS, "max_attempts": max_attempts},
        dimension=TRAINED.dimension,
        frozen_adapter_sha256=vector_sha256(FROZEN.flatten(A)),
        adapter_layout_sha256=WHOLE.sha256,
    )


@dataclass(frozen=True)
class Kill:
    """The end of a process: where it reaches ``point`` for the ``occurrence``-th time since it was started."""

    victim: str
    point: str
    occurrence: int


class Reach:
    """Called at every point that a process reaches, which it notes; at the place of its ``kill`` the process ends."""

    def __init__(self, kill: Kill | None, log: Path) -> None:
        self._kill = kill
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._reached: Counter[str] = Counter()

    def __call__(self, point: str, *, leaving: Callable[[], object] = lambda: None) -> None:
        """``leaving`` is what a process has done by then that dies there, and that others do not do."""
        self._reached[point] += 1
        os.write(self._log, f"{point}\n".encode())
        if self._kill and (point, self._reached[point]) == (self._kill.point, self._kill.occurrence):
            leaving()
            os.kill(os.getpid(), signal.SIGKILL)


# --- a site -----------------------------------------------------------------------------------------------------------


def work(manifest: Manifest, name: str, state: Path, requests: Connection, reach: Reach) -> None:
    """A site's worker. Its operator joins and, as long as nothing has begun, leaves and joins again."""
    budget = SiteState.open(state, reach=reach)
    reservations = Reservations(budget.database)
    agree = partial(join, manifest, allowed_study.policy(), name=name, reservations=reservations)
    agree()
    if not budget.last_attempt(manifest.study_id):
        reservations.cancel(manifest.study_id)
        agree()
    patients = [f"{name}-{number}" for number in range(3)]
    Patients(budget.database, FingerprintKey(name.encode())).claim(allowed_study.policy().data.asset, patients)
    worker = WorkerService(
        Worker(
            name=name,
            identity=allowed_study.IDENTITIES[name],
            manifest=manifest,
            release=lambda adapter, mechanism: np.frombuffer(secrets.token_bytes(4 * manifest.dimension), "<u4") % 1000,
            state=budget,
        )
    )
    while True:
        request = requests.recv_bytes()
        exchange = ANSWERED_BY[Envelope.parse(request).exchange]
        reach(f"{exchange} asked")
        answer = worker.answer(request)
        reach(f"{exchange} computed")
        requests.send_bytes(answer)
        reach(f"{exchange} sent")


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReachingFolder(StudyFolder):
    """A study's folder, with a point before and after whatever is written, and in the middle of it."""

    reach: Reach

    def append_entry(self, line: bytes) -> None:
        kind = Entry.parse(line).type
        self.reach(f"before {kind}")
        self.reach(f"half {kind}", leaving=lambda: self._append(line[: len(line) // 2]))
        super().append_entry(line)
        self.reach(f"after {kind}")

    def save_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        self.reach("before checkpoint")
        saved = super().save_checkpoint(checkpoint)
        self.reach("after checkpoint")
        return saved

    def save_results(self, *args: Any, **kwargs: Any) -> list[str]:
        self.reach("before results")
        files = super().save_results(*args, **kwargs)
        self.reach("after results")
        return files

    def _append(self, data: bytes) -> None:
        ledger = self.path / LEDGER
        ledger.parent.mkdir(exist_ok=True)
        with ledger.open("ab") as file:
            file.write(data)


class SmallModel:
    """What a study asks of a language model, of one that is a vector."""

    def __init__(self, manifest: Manifest, reach: Reach) -> None:
        self._study = manifest.study
        self._adapter: Vector = np.zeros(manifest.dimension, np.float32)
        self._reach = reach

    def get_adapter(self) -> Vector:
        return self._adapter

    def set_adapter(self, adapter: Vector) -> None:
        self._adapter = adapter

    def record_losses(self, evaluation: Sequence[Any], adapter: Vector) -> RecordLosses:
        lost = math.log(50.0 / (1.0 + float(np.abs(adapter).mean())))
        return RecordLosses(losses=np.array([[lost, lost + 1, 0, 0]]), tokens=np.array([[1, 1, 0, 0]]))

    def export(self, folder: Path, **config: Any) -> None:
        folder.mkdir()
        (folder / Path(CONFIG).name).write_bytes(config_of(self._study))
        self._reach("half results")
        save_file({**A, **TRAINED.unflatten(self._adapter)}, folder / Path(WEIGHTS).name)


def serve(manifest: Manifest, path: Path, sites: Connection, reach: Reach) -> None:
    """The study from where its folder stands to its end."""
    folder = ReachingFolder(path, reach)
    folder.tidy()
    verified = VerifiedLedger.of(folder.ledger_lines())
    check_ledger_of(manifest, verified)
    run = StudyRun(
        manifest=manifest,
        ledger=LedgerWriter(identity=allowed_study.SERVER, store=folder.append_entry, verified=verified),
        folder=folder,
        model=SmallModel(manifest, reach),  # type: ignore[arg-type]
        base=path,
        evaluation=EvaluationSet(examples=(), max_tokens=16, cut=0, patients=["nobody"], groups={}),
        evaluation_source="nothing",
        observe=lambda event: None,
    )
    for conversation in run.conversations():
        while not conversation.finished:
            messages = dict(conversation.messages())
            exchange = ANSWERED_BY[Envelope.parse(next(iter(messages.values()))).exchange]
            reach(f"{exchange} made")
            sites.send(messages)
            reach(f"{exchange} asked")
            for number in range(len(messages)):
                conversation.receive(*sites.recv())
                if number == 0:
                    reach(f"{exchange} in part")
            reach(f"{exchange} answered")
            conversation.advance()


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Party:
    """A process of the federation, which is started again after each death, and dies by one of ``kills`` each time."""

    main: Callable[[Connection, Reach], None]
    kills: list[Kill]
    log: Path
    _pid: int | None = None

    @property
    def running(self) -> bool:
        """Whether nobody has seen its end."""
        return self._pid is not None

    def start(self) -> None:
        """Fork it, with a ``channel`` to it."""
        parent, (self.channel, there) = os.getpid(), Pipe()
        kill = self.kills.pop(0) if self.kills else None
        self._pid = os.fork()
        if not self._pid:
            status = FAILED
            try:
                die_with(parent)
                self.channel.close()
                self.main(there, Reach(kill, self.log))
                status = 0
            except ProtocolError:
                status = UNSIGNED
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        there.close()

    def stop(self) -> None:
        """End it where it runs."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self.ended()

    def ended(self) -> int:
        """How it ended; minus the signal."""
        assert self._pid is not None
        self.channel.close()
        status, self._pid = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), None
        return status

    def reached(self) -> list[str]:
        """The points that it came to, in order."""
        return self.log.read_text().split("\n")[:-1]


@dataclass
class ForkedFederation:
    """A study below ``path`` that ``run`` carries to its end, whoever dies on the way.

    The server's command is given again until every site has signed the end. What a killed site had not answered is
    sent to it again once it is back; its answer reaches the server if ``redelivers``, or else only who listens.
    """

    path: Path
    manifest: Manifest
    kills: Sequence[Kill] = ()
    redelivers: bool = False
    commands: int = 0
    # What was on disk at each kill, and what left each site.
    left: list[Left] = field(default_factory=list)
    said: dict[str, list[bytes]] = field(default_factory=lambda: {site: [] for site in SITES})

    def __post_init__(self) -> None:
        self.study = StudyFolder(self.path / "study")
        self.states = {site: self.path / site for site in SITES}
        self.study.path.mkdir(parents=True)
        self.study.save_manifest(self.manifest)
        self.sites = {site: self._party(site, partial(work, self.manifest, site, self.states[site])) for site in SITES}
        self.server = self._party(SERVER, partial(serve, self.manifest, self.study.path))

    def on_disk(self) -> Left:
        """What is on disk now."""
        return Left.by(self.study.path / LEDGER, self.states)

    def run(self) -> "ForkedFederation":
        """The study to its end."""
        try:
            while not self._command():
                assert self.commands <= len(self.kills), "the command is given again, and does not help"
        finally:
            for party in (self.server, *self.sites.values()):
                party.stop()
        return self

    def _command(self) -> bool:
        """Run the server until it ends; whether every site has signed."""
        self.commands += 1
        self.server.start()
        try:
            while True:
                for answered in self._answers(self.server.channel.recv()).items():
                    self.server.channel.send(answered)
        except (EOFError, OSError):
            status = self.server.ended()
        assert status in (0, UNSIGNED, -signal.SIGKILL), f"the server ends with {status}"
        if status == -signal.SIGKILL:
            self.left.append(self.on_disk())
        return status == 0 and VerifiedLedger.of(self.study.ledger_lines()).closing_signatures == set(SITES)

    def _answers(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        for site, message in messages.items():
            self._tell(site, message)
        return {site: self._answer(site, message) for site, message in messages.items()}

    def _tell(self, site: str, message: bytes) -> None:
        party = self.sites[site]
        if not party.running:
            party.start()
        with suppress(OSError):  # it died after its last answer: who waits for the next one sees it
            party.channel.send_bytes(message)

    def _answer(self, site: str, message: bytes) -> bytes:
        died = False
        while True:
            try:
                answer = self.sites[site].channel.recv_bytes()
            except (EOFError, OSError):
                died = True
                assert self.sites[site].ended() == -signal.SIGKILL, f"{site} ends by itself"
                self.left.append(self.on_disk())
                self._tell(site, message)
                continue
            self.said[site].append(answer)
            return answer if self.redelivers or not died else b""

    def _party(self, name: str, main: Callable[[Connection, Reach], None]) -> Party:
        kills = [kill for kill in self.kills if kill.victim == name]
        return Party(main=main, kills=kills, log=self.path / f"{name}.reached")
