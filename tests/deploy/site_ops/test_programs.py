"""A site's two programs as real processes: of two users where root starts them, and what each of these reaches."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from support.network.loopback import has_ended, until
from support.network.real_federation import PROGRAM, descendants
from support.process.forked import forked
from support.process.other_users import AS_ROOT, done_as, open_folder, reachable_by_all, user
from support.study.site_study import ADDRESS, SiteStudy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.site import assembly
from grandrounds.client.site.prepared import lock_of
from grandrounds.client.worker_socket import health
from grandrounds.common.errors import StudyError
from grandrounds.common.study.artefacts import MANIFEST
from grandrounds.common.system.files import write_atomically
from grandrounds.common.system.locks import alone, in_turn
from grandrounds.common.system.privileges import User
from grandrounds.common.system.processes import Process, environment
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops import health as site_health
from grandrounds.deploy.site_ops import programs as site_programs
from grandrounds.deploy.site_ops.users import WARNING

WORKER, NODE, STRANGER = user(65533), user(65532), user(65531)
STRANGER_IN_THE_NODE_S_GROUP = User(uid=STRANGER.uid, gid=NODE.gid, home="/")
OF_THE_WORKER = (
    "key",
    "fingerprint.key",
    "state/budget.sqlite",
    "policy.toml",
    "site.toml",
    "opted-out.txt",
    "notes.jsonl",
)


def joined(root, **users):
    study = SiteStudy(save_tiny_model(root / "model"))
    federation = study.federation()
    folder = study.initialised(root / "site", federation, **users)
    site_operator.join_study(folder, study.bundle(federation, root / "tls"), agreed=lambda agreement: True)
    return folder


class Running:
    """A site that root started, of a study whose server is away; ``pids`` are its processes, by what they are."""

    def __init__(self, root):
        self.folder = joined(root, worker_user=str(WORKER.uid), node_user=str(NODE.uid))
        self.study = self.folder.study()
        self.socket = self.study.socket(self.folder.settings().socket)
        start = reachable_by_all([PROGRAM, "client", "start", self.folder.path])
        self.process = Process(start, log=root / "log", env=environment())
        until(lambda: isinstance(self.health_of(NODE), dict), "the worker is up")
        until(lambda: {"worker", "node", "supernode", "relay"} <= self.pids.keys(), "the node is up")

    @property
    def pids(self):
        known = {
            "worker": "worker",
            "node": "node",
            "flower-supernode": "supernode",
            "grandrounds.client.node.relay": "relay",
        }
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in descendants(self.process.pid)}
        return {
            known[name]: pid
            for pid, parts in commands.items()
            for name in known.keys() & {*parts, *(Path(part).name for part in parts[:2])}
        }

    def health_of(self, user):
        """What a process of the user is told, or what it meets."""
        return done_as(user, lambda: health(self.socket))


@pytest.fixture(scope="module")
def site():
    with open_folder() as root:
        running = Running(root)
        yield running
        running.process.stop()


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.split() for name, _, text in (line.partition(":") for line in lines)}


@AS_ROOT
def test_each_program_is_its_user_s_and_in_no_other_group(site):
    for name, owner in {"worker": WORKER, "node": NODE, "supernode": NODE, "relay": NODE}.items():
        said = status(site.pids[name])
        assert (said["Uid"], said["Gid"], said["Groups"]) == ([str(owner.uid)] * 4, [str(owner.gid)] * 4, []), name
        assert said["NoNewPrivs"] == ["1"]


@AS_ROOT
def test_the_worker_has_no_network_but_loopback_and_says_nothing_of_one(site):
    interfaces = Path(f"/proc/{site.pids['worker']}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert "has a network" not in site.study.log.read_text()
    assert not Path(f"/proc/{site.pids['worker']}/ns/net").samefile("/proc/self/ns/net")
    assert Path(f"/proc/{site.pids['node']}/ns/net").samefile("/proc/self/ns/net")


@AS_ROOT
def test_the_node_s_user_reads_nothing_that_is_the_worker_s_and_may_ask_it(site):
    for path in (*(site.folder.path / name for name in OF_THE_WORKER), site.study.log, site.study.path / "study.json"):
        assert done_as(NODE, lambda path=path: path.read_bytes().hex()) == "PermissionError", path
    assert done_as(NODE, lambda: list(site.folder.path.iterdir())) == "PermissionError"
    assert site.health_of(NODE)["last_attempt"] == 0


@AS_ROOT
def test_root_is_told_how_both_users_programs_are_and_the_worker_s_user_how_its_own_is(site):
    found = site_health.health(site.folder, site.study)
    assert found.worker is not None and found.worker["last_attempt"] == 0
    assert found.states["node"].startswith(f"is not connected: {ADDRESS} refuses the connection")
    states = done_as(WORKER, lambda: site_health.health(site.folder, site.study).states)
    assert states["worker"] == found.states["worker"]
    assert re.match(r"up since \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, ", states["worker"]), "as the server's status has it"
    assert states["node"] == f"not known: it is for root, or the user {NODE.uid}, to ask"


@AS_ROOT
def test_who_is_neither_user_gets_no_answer_even_from_the_node_s_group(site):
    assert site.health_of(STRANGER) == "PermissionError"
    assert site.health_of(STRANGER_IN_THE_NODE_S_GROUP) in ("BrokenPipeError", "ConnectionResetError")
    assert f"user {STRANGER.uid} is not allowed to ask" in site.study.log.read_text()


@AS_ROOT
@pytest.mark.parametrize("owner", [WORKER, NODE])
def test_neither_user_decides_as_whom_root_runs_what(site, owner):
    assert done_as(owner, lambda: (site.folder.path / "site.toml").open("a").close()) == "PermissionError"
    assert done_as(owner, lambda: (site.folder.path / "site.toml").unlink()) == "PermissionError"
    assert done_as(owner, lambda: (site.folder.path / "new").touch()) == "PermissionError"


@AS_ROOT
def test_a_site_is_not_left_while_its_worker_runs(site):
    with pytest.raises(StudyError, match="another worker holds"):
        site_operator.leave(site.folder, site.study)
    assert site.study.manifest()


@AS_ROOT
def test_only_root_starts_both_and_each_user_only_its_own(site):
    def starts_both():
        site_programs.start(site.folder, [site.study], stopped=lambda: True, say=lambda line: None)

    assert done_as(WORKER, starts_both) == "StudyError"

    def starts_the_node():
        try:
            site_programs.node(site.folder, site.study, stopped=lambda: True)
        except StudyError as error:
            return error.what

    assert done_as(NODE, starts_the_node) == f"the node of study {site.study.name} runs already"
    assert "node.json cannot be read" in done_as(WORKER, starts_the_node)
    assert done_as(NODE, lambda: site_programs.worker(site.folder, site.study)) == "StorageError"


@AS_ROOT
def test_a_site_that_is_told_to_stop_leaves_nothing_behind(site):
    pids = site.pids
    site.process.stop(grace_s=60)
    assert all(map(has_ended, pids.values()))
    assert not site.socket.exists()
    assert "down" in site.study.log.read_text()


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """A site that joined a study, without users of its own, and runs nothing."""
    return joined(tmp_path_factory.mktemp("away"))


def test_root_that_runs_both_parts_itself_is_told_what_that_means(away):
    said: list[str] = []
    site_programs.start(away, away.joined(), stopped=lambda: True, say=said.append)
    assert (WARNING in said) == (os.geteuid() == 0)
    assert any("prepares the records first" in line and "client prepare" in line for line in said)


def test_a_study_of_another_program_keeps_no_other_from_starting(away):
    study = away.study()
    said: list[str] = []
    assert site_programs.runnable(away, say=said.append) == [study] and not said
    other = away.path / "studies" / ("0" * 12)
    shutil.copytree(study.path, other)
    try:
        manifest = json.loads((other / MANIFEST).read_bytes())
        (other / MANIFEST).write_text(json.dumps(manifest | {"package_sha256": "ab" * 32}))
        assert site_programs.runnable(away, say=said.append) == [study]
        assert said[0].startswith(f"study {'0' * 12} is not started: the study runs grandrounds ")
        study.path.rename(aside := away.path / "aside")
        with pytest.raises(StudyError, match="the study runs grandrounds"):
            site_programs.runnable(away, say=said.append)
        aside.rename(study.path)
    finally:
        shutil.rmtree(other)


def test_a_site_that_has_joined_nothing_starts_nothing(tmp_path):
    study = SiteStudy(save_tiny_model(tmp_path / "model"))
    folder = study.initialised(tmp_path / "site", study.federation())
    with pytest.raises(StudyError, match="takes part in no study"):
        site_programs.start(folder, folder.joined(), stopped=lambda: True, say=lambda line: None)
    with pytest.raises(StudyError, match=r"there is no .*node.json"):
        site_programs.node(folder, folder.of("ab" * 32), stopped=lambda: True)


def test_a_worker_that_meets_what_nobody_expected_says_where_and_quotes_nothing(away, monkeypatch):
    def fails(folder, study):
        raise ValueError("a record: " + " ".join(["no", "complaints"]))

    monkeypatch.setattr(assembly, "open_site", fails)
    status, _, complaint = forked(lambda: site_programs.worker(away, away.study()))
    assert status == 1
    assert complaint.endswith("ValueError\n")
    assert "in fails" in complaint
    assert "no complaints" not in complaint


def test_a_study_is_started_once_and_by_nobody_while_its_node_s_port_is_another_s(away, monkeypatch):
    monkeypatch.setattr(site_programs, "_PORT_S", 0.0)
    study = away.study()

    def start():
        site_programs.start(away, [study], stopped=lambda: True, say=lambda line: None)

    with study.starting(), pytest.raises(StudyError, match=f"study {study.name} is started already"):
        start()
    port = study.node.settings().runtime_port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StudyError) as refused:
        start()
    assert f"port {port} of 127.0.0.1, where the SuperNode of study {study.name} is to listen" in refused.value.what
    assert f"process {os.getpid()} (" in refused.value.what and "runtime_port in site.toml" in refused.value.fix


def test_health_of_programs_that_do_not_run_has_their_last_words(away):
    study = away.study()
    write_atomically(study.log, b'{"time": "-", "level": "error", "event": "the model is another"}\n')
    write_atomically(study.node.log, b"2026-02-01 it was stopped\n")
    (study.path / "worker.out").unlink(missing_ok=True)
    found = site_health.health(away, study)
    with study.starting():
        assert "; `grandrounds client start` starts it again" in site_health.health(away, study).states["worker"]
    with in_turn(study.lock):
        assert "it loads model and records first" in site_health.health(away, study).states["worker"]
        (place := away.prepared / ("0" * 16)).mkdir(parents=True)
        with in_turn(lock_of(place)):
            assert "the records are being prepared first" in site_health.health(away, study).states["worker"]
        place.rmdir()
    assert not found.is_well and found.worker is None
    assert f"does not run; its last word: the model is another ({study.log}); start it" in found.states["worker"]
    assert "does not run; its last word: 2026-02-01 it was stopped" in found.states["node"]


def test_health_of_a_node_that_runs_says_whether_it_is_connected_and_if_not_why(away):
    study, taken = away.study(), StudyError("", why="", fix="")
    log, states = study.node.written / "supernode.log", []
    with alone(study.node.lock, taken=taken), alone(study.lock, taken=taken):
        for line in ("Starting Flower SuperNode", "SuperNode ID: 7", "Connection attempt failed, retrying in 2 s"):
            with log.open("a") as file:
                file.write(f"\x1b[92mINFO \x1b[0m:      {line}\n")
            states.append(site_health.health(away, study).states["node"])
        (study.node.written / "relay.log").write_text("WARNING no answer came from the worker: it is not up\n")
        found = site_health.health(away, study).states
    refused = f"is not connected: {ADDRESS} refuses the connection. What to do: ask whether `grandrounds server start`"
    assert [state.startswith(refused) for state in states] == [True, False, True]
    assert states[1] == f"connected to {ADDRESS}"
    assert found["worker"].startswith("runs, and does not answer yet (it is not up)")
    assert found["relay"] == "WARNING no answer came from the worker: it is not up"
