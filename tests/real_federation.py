"""A federation of real processes on loopback, set up by what its operators' commands call, and run by the commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loopback import free_ports

from grandrounds.client.site import SiteFolder
from grandrounds.common.identity import canonical_json
from grandrounds.common.processes import Process, environment
from grandrounds.deploy import server_operator, site_operator
from grandrounds.deploy.bundle import Bundle
from grandrounds.deploy.server_folder import ServerFolder

PROGRAM = Path(sys.executable).with_name("grandrounds")
SITES = ("north", "south", "west")
STUDY = """
[model]
name = "tiny"
[data]
max_tokens = 16
evaluation = "synthetic"
[privacy]
target_epsilon = 4.0
[training]
rounds = {rounds}
max_attempts = {max_attempts}
deadline_s = 60
"""
POLICY = """
[study]
largest_epsilon = 4.0
largest_delta = 0.01
trust = ["distributed"]
smallest_honest_shares = 2
verified_peers = {peers}
[[study.models]]
name = "tiny"
[data]
epsilon = 8.0
delta = 0.01
"""


def descendants(pid: int) -> list[int]:
    """The ids of all that a process has started, and what those have (proc(5))."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


class RealFederation:
    """Server and sites in ``path``; ``start`` starts their processes, ``stop`` stops them."""

    def __init__(self, path: Path, *, rounds: int = 1, max_attempts: int = 3) -> None:
        self.path = path
        self.server = path / "server"
        self.processes: dict[str, Process] = {}
        gate, superlink, *runtimes = free_ports(2 + len(SITES))
        self.gate, self.superlink = gate, superlink
        folder = ServerFolder(self.server)
        server_operator.init(folder, host="localhost", port=gate, superlink_port=superlink)
        sites = "".join(f'[[sites]]\nname = "{site}"\nnominal_units = 20\n' for site in SITES)
        study = STUDY.format(rounds=rounds, max_attempts=max_attempts)
        (self.server / "study.toml").write_text(study + sites)
        self.write_records(self.server / "evaluation.jsonl", "evaluation")
        for site, runtime in zip(SITES, runtimes, strict=True):
            self.write_records(path / f"{site}.jsonl", site)
            site_operator.init(SiteFolder(path / site), name=site, data=path / f"{site}.jsonl", model="tiny")
            with (path / site / "site.toml").open("a") as file:
                file.write(f"runtime_port = {runtime}\n")
            server_operator.enroll(folder, path / site / "site.json")
        server_operator.bundle(folder)
        self.bundle = Bundle.read(self.server / "study.zip")
        manifest = self.bundle.manifest
        peers = json.dumps([manifest.server_key, *manifest.site_keys.values()])
        for site in SITES:
            (path / site / "policy.toml").write_text(POLICY.format(peers=peers))
            site_operator.join_study(SiteFolder(path / site), self.bundle, agreed=lambda agreement: True)

    def write_records(self, path: Path, prefix: str) -> None:
        rows = ({"patient_id": f"{prefix}-{number}", "text": "no complaints"} for number in range(20))
        path.write_bytes(b"\n".join(map(canonical_json, rows)))

    def call(self, *arguments: str | Path, fails: bool = False) -> str:
        """What a command prints; it succeeds, or ``fails`` with a diagnosis."""
        command = [str(argument) for argument in (PROGRAM, *arguments)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == int(fails), done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def start(self, *names: str) -> None:
        for name in names or ("server", *SITES):
            role = "server" if name == "server" else "client"
            command = [PROGRAM, role, "start", self.path / name]
            self.processes[name] = Process(command, log=self.path / f"{name}.log", env=environment())

    def stop(self, *names: str) -> None:
        stopping = [self.processes.pop(name) for name in names or tuple(self.processes)]
        for process in stopping:
            process.terminate()
        for process in stopping:
            process.stop(grace_s=40)

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
        """SIGKILL, to the process that has the site's records; who started it starts it again."""
        below = descendants(self.processes[site].pid)
        (worker,) = [pid for pid in below if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        os.kill(worker, signal.SIGKILL)

    def running(self) -> Process:
        """``server run`` as a process of its own."""
        command = [PROGRAM, "server", "run", self.server]
        return Process(command, log=self.path / "run.log", env=environment())

    def until(self, event: str, count: int = 1) -> None:
        """Wait until the progress has told ``event`` so many times."""
        deadline = time.monotonic() + 180
        while sum(line["event"] == event for line in self.progress()) < count:
            assert time.monotonic() < deadline, f"no {event}"
            time.sleep(0.2)

    def progress(self) -> list[dict]:
        path = self.server / "progress.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self) -> list[dict]:
        """The study, carried out or gone on with; its events."""
        return [json.loads(line) for line in self.call("server", "run", self.server, "--json").splitlines()]

    def status(self) -> dict:
        return json.loads(self.call("server", "status", self.server, "--json"))
