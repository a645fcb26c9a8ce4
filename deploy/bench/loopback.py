"""A federation of real processes on this machine: keys, study and folders as its operators' commands make them."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...common.crypto.identity import canonical_json
from ...common.system.processes import PROGRAM, Process, environment
from ...common.system.supervision import stop_all
from ...server.run.server_folder import ServerFolder
from ..builtin.models import TINY_MODEL
from ..enrolment.bundle import Bundle
from ..server_ops import bundling
from ..server_ops import commands as server_operator
from ..site_ops import commands as site_operator
from .wide_model import RANK, TARGETS, wide_model

UNITS: Final = 20
_ANSWER_AFTER_S: Final = 2.0
_ANSWER_AFTER_S_PER_NUMBER: Final = 2e-6
_STOP_S: Final = 90.0  # as long as the server or a site waits for what it started itself
_STUDY: Final = """
[model]
name = {model}
{adapter}[data]
max_tokens = 16
evaluation = "synthetic"
[privacy]
target_epsilon = 4.0
[training]
rounds = {rounds}
max_attempts = {max_attempts}
deadline_s = {deadline_s:g}
answer_after_s = {answer_after_s:g}
"""
_SITE: Final = """[[sites]]
name = "{name}"
nominal_units = {units}
"""
_POLICY: Final = """
[study]
largest_epsilon = 4.0
largest_delta = 0.01
trust = ["distributed"]
smallest_honest_shares = 2
verified_peers = {peers}
[[study.models]]
name = {model}
[data]
epsilon = 8.0
delta = 0.01
"""


class LoopbackFederation:
    """A server and its sites below ``path``, whose study is agreed; nothing runs before ``start``.

    With another federation ``beside``, the study is one more of that one's sites, and the server is its own.

    The model is ``tiny``, or one whose adapter trains ``dimension`` numbers, and every site has 20 patients of one
    record each: what is left to see is the machinery.
    ``processes`` are those that run, by the name of their site, the server's as ``server``.
    """

    def __init__(
        self,
        path: Path,
        *,
        sites: Sequence[str],
        rounds: int,
        max_attempts: int,
        deadline_s: float = 60.0,
        dimension: int | None = None,
        beside: "LoopbackFederation | None" = None,
    ) -> None:
        """Make the folders of all in ``path``. Raises StudyError, PrivacyError and StorageError."""
        self.path = path
        self.home: Path = path if beside is None else beside.home
        self.sites = tuple(sites)
        self._peers: list[str] = [] if beside is None else beside._peers
        self.folder = ServerFolder(path / "server")
        self.processes: dict[str, Process] = {}
        self.gate, self.superlink, *runtimes = free_ports(2 + len(sites))
        server_operator.init(self.folder, host="localhost", port=self.gate, superlink_port=self.superlink)
        self._model, adapter = TINY_MODEL, ""
        if dimension is not None:
            self._model = str((path / "model").absolute())
            wide_model(Path(self._model), dimension=dimension)
            adapter = f"target_modules = {json.dumps(TARGETS)}\nrank = {RANK}\n"
        study = _STUDY.format(
            model=json.dumps(self._model, ensure_ascii=False),
            adapter=adapter,
            rounds=rounds,
            max_attempts=max_attempts,
            deadline_s=deadline_s,
            answer_after_s=_ANSWER_AFTER_S + _ANSWER_AFTER_S_PER_NUMBER * (dimension or 0),
        )
        self.folder.study_toml.write_text(study + "".join(_SITE.format(name=site, units=UNITS) for site in sites))
        # Of a wide model it is the activations that would be measured.
        _write_records(self.evaluation, "evaluation", count=UNITS if dimension is None else 1)
        for site, port in zip(sites, runtimes, strict=True):
            if beside is None:
                self._found(site, port)
            self._enroll(site)
        bundling.bundle(self.folder)
        self.bundle = Bundle.read(self.folder.bundle)
        self._peers += [self.bundle.manifest.server_key, *self.bundle.manifest.site_keys.values()]
        for site in sites:
            self._join(site)

    @property
    def evaluation(self) -> Path:
        """The evaluation set of the study."""
        return self.folder.path / "evaluation.jsonl"

    def records(self, site: str) -> Path:
        """The records of a site."""
        return self.home / f"{site}.jsonl"

    def study_of(self, site: str) -> JoinedStudy:
        """The study as a site has it."""
        return SiteFolder(self.home / site).of(self.bundle.manifest.study_id)

    def start(self, *names: str) -> None:
        """Start the processes of server and sites, or of those that are named."""
        for name in names or ("server", *self.sites):
            role, place = ("server", self.folder.path) if name == "server" else ("client", self.home / name)
            command: list[str | Path] = [PROGRAM, role, "start", place]
            self.processes[name] = Process(command, log=self.path / f"{name}.log", env=environment())

    def stop(self, *names: str) -> None:
        """End all processes, or those that are named, and what they have started, in order."""
        stop_all([self.processes.pop(name) for name in names or tuple(self.processes)], grace_s=_STOP_S)

    def _found(self, site: str, runtime_port: int) -> None:
        """A site's folder."""
        place = self.home / site
        _write_records(self.records(site), site)
        site_operator.init(SiteFolder(place), name=site, data=self.records(site), model=self._model)
        with (place / "site.toml").open("a") as file:
            file.write(f"runtime_port = {runtime_port}\n")

    def _enroll(self, site: str) -> None:
        """The server knows a site's keys."""
        server_operator.enroll(self.folder, self.home / site / "site.json")

    def _join(self, site: str) -> None:
        place = self.home / site
        peers = json.dumps([*self._peers, *self.bundle.manifest.site_keys.values()])
        (place / "policy.toml").write_text(
            _POLICY.format(peers=peers, model=json.dumps(self._model, ensure_ascii=False))
        )
        site_operator.join_study(SiteFolder(place), self.bundle, agreed=lambda agreement: True)


def descendants(pid: int) -> list[int]:
    """The ids of all that a process has started, and what those have (proc(5)); none where it has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _write_records(path: Path, prefix: str, count: int = UNITS) -> None:
    rows = ({"patient_id": f"{prefix}-{number}", "text": "no complaints"} for number in range(count))
    path.write_bytes(b"\n".join(map(canonical_json, rows)))
