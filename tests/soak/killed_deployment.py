"""Real deployments on this machine whose processes are killed, stopped and run out of disk, and whose studies go on.

``python -m soak.killed_deployment COUNT [JOURNAL]`` strikes COUNT times, in as many deployments as that takes, and
prints what each kind has cost. JOURNAL keeps what came of each deployment, so that the next call goes on after it
(``make soak``). A study has four sites, of which three must answer.
"""

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from support.ledger.left_on_disk import check_kept
from support.network.real_federation import RealFederation

from grandrounds.common.ledger.records import AttemptRecord
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.system.processes import Process
from grandrounds.deploy.bench.loopback import LoopbackFederation, descendants
from grandrounds.deploy.verify.claims import verify

SITES = ("north", "south", "west", "east")
ROUNDS, ATTEMPTS = 40, 400
DEADLINE_S = 15.0
PATIENCE_S = 400.0
POLL_S = 0.2
EXCHANGES = ("advert", "shares", "masked-input", "consistency", "unmask")


class Deployment(RealFederation):
    """A server and four sites below ``path``, and ``server run``. A command that ends too early is given again."""

    def __init__(self, path: Path, *, rounds: int = ROUNDS, max_attempts: int = ATTEMPTS) -> None:
        LoopbackFederation.__init__(
            self, path, sites=SITES, rounds=rounds, max_attempts=max_attempts, deadline_s=DEADLINE_S
        )
        self.server = self.folder.path
        self.commands = 0
        self._run: Process | None = None

    @property
    def finished(self) -> bool:
        """Whether the study is at its end. Where it is not, commands that do not run are given again."""
        for name in [name for name, process in self.processes.items() if not process.running]:
            self.start(name)
            self.commands += 1
        if self._run is None or not self._run.running:
            if self._run is not None and self._run.exit_code == 0:
                return True
            self._run = self.running()
            self.commands += 1
        return False

    def end(self) -> None:
        """Stop all that runs."""
        if self._run is not None:
            self._run.kill()
        self.stop()

    def of(self, name: str, *parts: str) -> list[int]:
        """The processes of the server or a site, and who started them; or those whose commands have these ``parts``."""
        own = self.processes[name].pid
        below = descendants(own)
        return [pid for pid in below if set(parts) <= _parts_of(pid)] if parts else [own, *below]

    def attempts(self) -> list[AttemptRecord]:
        """The attempts of the ledger as it is."""
        return VerifiedLedger.of(self.on_disk().lines).attempts

    def wait(self, holds: Callable[[], bool]) -> bool:
        """Wait until that holds, or the study is at its end; whether it held first."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.finished:
            if holds():
                return True
            assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s: {self.progress()[-3:]}"
            time.sleep(POLL_S)
        return False

    def wait_for(self, count: int, *, whole: bool = False) -> bool:
        """Wait for so many further attempts to end, or to be unmasked with nobody missing."""
        known = len(self.attempts())

        def over() -> bool:
            new = [record for record in self.attempts()[known:] if record.ended]
            return (
                sum(record.unmasked and not record.dropouts for record in new) >= count if whole else len(new) >= count
            )

        return self.wait(over)


def _parts_of(pid: int) -> set[str]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {*command, *(Path(part).name for part in command)}


# --- what happens to them ---------------------------------------------------------------------------------------------


def _kill(deployment: Deployment, name: str, *parts: str) -> None:
    _signal(deployment.of(name, *parts), signal.SIGKILL)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, number)


def kills(*parts: str) -> Callable[[Deployment, str], None]:
    """SIGKILL, to the process whose command has these parts."""
    return lambda deployment, name: _kill(deployment, name, *parts)


def kill_the_server_app(deployment: Deployment, _: str) -> None:
    began = [event for event in deployment.progress() if event["event"] == "began"]
    _signal([began[-1]["process"]], signal.SIGKILL)


def kill_who_started_them(deployment: Deployment, name: str) -> None:
    deployment.processes.pop(name).kill()
    deployment.start(name)


def kill_the_host(deployment: Deployment, name: str) -> None:
    deployment.kill(name)
    deployment.start(name)


def cut_the_network(deployment: Deployment, name: str) -> None:
    """All of the site's processes stand still, for longer than an exchange may take."""
    stopped = deployment.of(name)
    _signal(stopped, signal.SIGSTOP)
    until = time.monotonic() + 1.5 * DEADLINE_S
    deployment.wait(lambda: time.monotonic() > until)
    _signal(stopped, signal.SIGCONT)


def fill_the_disk(deployment: Deployment, name: str) -> None:
    """No file of theirs can grow, for as long as an exchange may take."""
    _limit_files(deployment.of(name), 0)
    until = time.monotonic() + DEADLINE_S
    deployment.wait(lambda: time.monotonic() > until)
    _limit_files(deployment.of(name), resource.RLIM_INFINITY)


def _limit_files(pids: Sequence[int], size_bytes: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def close_the_hospital(deployment: Deployment, name: str) -> None:
    deployment.stop(name)
    deployment.wait_for(3)
    deployment.start(name)


# By what is struck: whether it is a site's, and what happens.
STRIKES: Mapping[str, tuple[bool, Callable[[Deployment, str], None]]] = {
    "a site's worker": (True, kills("grandrounds", "worker")),
    "a site's SuperNode": (True, kills("flower-supernode")),
    "a site's relay": (True, kills("grandrounds.client.node.relay")),
    "a site's `client node`": (True, kills("grandrounds", "node")),
    "a site's `client start`": (True, kill_who_started_them),
    "a site's host": (True, kill_the_host),
    "a site's network, for longer than a deadline": (True, cut_the_network),
    "a site's disk is full": (True, fill_the_disk),
    "a hospital is away for three attempts": (True, close_the_hospital),
    "SuperLink": (False, kills("flower-superlink")),
    "executor": (False, kills("flower-superexec")),
    "ServerApp": (False, kill_the_server_app),
    "gate": (False, kills("grandrounds.deploy.server_ops.gate")),
    "`server start`": (False, kill_who_started_them),
    "the server's host": (False, kill_the_host),
    "the server's disk is full": (False, fill_the_disk),
}


@dataclass(frozen=True, kw_only=True)
class Struck:
    """What one strike has cost, until two attempts in a row were unmasked with every site."""

    strike: str
    lost: int
    without: int
    commands: int
    seconds: float


def strike(deployment: Deployment, kind: str, draw: random.Random) -> Struck | None:
    """Strike in the middle of a random exchange, and wait until all is as before; None where the study ended first."""
    exchange, told = draw.choice(EXCHANGES), len(deployment.progress())
    due = deployment.wait(lambda: any(event.get("exchange") == exchange for event in deployment.progress()[told:]))
    if not due:
        return None
    before, commands, began = len(deployment.attempts()), deployment.commands, time.monotonic()
    of_site, happens = STRIKES[kind]
    happens(deployment, draw.choice(SITES) if of_site else "server")
    deployment.wait_for(2, whole=True)
    records = deployment.attempts()[before - 1 :]
    if not records[-1].ended:
        records.pop()  # it runs
    return Struck(
        strike=kind,
        lost=sum(not record.unmasked for record in records),
        without=sum(record.unmasked and bool(record.dropouts) for record in records),
        commands=deployment.commands - commands,
        seconds=time.monotonic() - began,
    )


def struck(folder: Path, kinds: Iterator[str], draw: random.Random, *, rounds: int = ROUNDS) -> list[Struck]:
    """A study from its beginning to its end, struck again and again; fails unless all is in order then."""
    deployment = Deployment(folder, rounds=rounds)
    done, moments = [], []
    deployment.start()
    try:
        for kind in kinds:
            result = strike(deployment, kind, draw)
            if result is None:
                break
            done.append(result)
            moments.append(deployment.on_disk())
            print(result, flush=True)
        while deployment.wait_for(1):
            pass
    finally:
        deployment.end()
    check_kept([*moments, deployment.on_disk()])
    verdict = verify(deployment.server / "study", manifest_hash=deployment.bundle.manifest.sha256)
    assert verdict.holds, verdict
    return done


def table(results: Sequence[Struck]) -> Iterator[str]:
    """The results as Markdown."""
    found = defaultdict(list)
    for result in results:
        found[result.strike].append(result)
    yield "| struck | times | attempts lost | attempts without a site | commands again | s until all is as before |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind in (kind for kind in STRIKES if kind in found):
        lost, without, commands = (
            sum(getattr(one, of) for one in found[kind]) for of in ("lost", "without", "commands")
        )
        seconds = median(one.seconds for one in found[kind])
        yield f"| {kind} | {len(found[kind])} | {lost} | {without} | {commands} | {seconds:.0f} |"


def main(count: int, journal: Path | None) -> int:
    """Strike until it was so many times; 1 where something goes wrong."""
    draw = random.Random()
    lines = journal.read_text().splitlines() if journal and journal.exists() else []
    results = [Struck(**json.loads(line)) for line in lines]
    while len(results) < count:
        # Each kind as often as the others.
        often = {kind: sum(result.strike == kind for result in results) for kind in STRIKES}
        kinds = sorted(STRIKES, key=lambda kind: (often[kind], draw.random()))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            new = struck(Path(folder), iter(kinds[: count - len(results)]), draw)
        results += new
        if journal:
            with journal.open("a") as file:
                file.writelines(json.dumps(asdict(result)) + "\n" for result in new)
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30, Path(sys.argv[2]) if len(sys.argv) > 2 else None))
