"""Whoever owns a part of a site's folder does not own root: every command of root's, over what they put there."""

import contextlib
import os
import re
import stat
import struct
import subprocess

import pytest
from support.process.other_users import AS_ROOT, done_as, open_folder, user
from support.process.resident_process import SITE
from support.study.site_study import SiteStudy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.site.training_view import STEPS, TrainingView
from grandrounds.client.state.database import DATABASE, SiteDatabase
from grandrounds.common.errors import GrandRoundsError, StorageError, StudyError
from grandrounds.deploy.cli import client as commands
from grandrounds.deploy.cli.site import site_of, watch
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops import health as site_health
from grandrounds.deploy.site_ops import owner
from grandrounds.deploy.site_ops import programs as site_programs
from grandrounds.deploy.site_ops.connection import check_connection
from grandrounds.deploy.site_ops.users import SiteUsers, hand_over

WORKER, NODE = user(65533), user(65532)
PAGE, LOCKED_BYTE, MAGIC = 4096, 0x40000000, bytes.fromhex("d9d505f920a163d7")


@pytest.fixture(scope="module")
def study():
    with open_folder() as root:
        yield SiteStudy(save_tiny_model(root / "llama"))


@pytest.fixture(scope="module")
def made(study):
    """A site of two users that has joined a study, and beside it what is root's."""
    with open_folder() as root:
        federation = study.federation()
        folder = study.initialised(root / "site", federation, worker_user=str(WORKER.uid), node_user=str(NODE.uid))
        bundle = study.bundle(federation, root / "tls")
        site_operator.join_study(folder, bundle, agreed=lambda agreement: True)
        yield root, bundle


@pytest.fixture
def site(made):
    with open_folder() as root:
        subprocess.run(["cp", "-a", made[0] / "site", root], check=True)  # noqa: S607
        (root / "of-root").mkdir(mode=0o700)
        for name in ("precious", "settings"):
            (root / "of-root" / name).write_text(f"root's {name}")
        SiteDatabase.open(root / "of-root").close()
        yield SiteFolder(root / "site")


def of_root(folder):
    return folder.path.parent / "of-root"


def seen(folder):
    """What is root's, to the byte."""
    return {
        path.name: (path.read_bytes(), path.stat().st_uid, path.stat().st_mode, path.stat().st_nlink)
        for path in of_root(folder).iterdir()
    }


def journal(named):
    """A journal that was left by a transaction over several databases, of which ``named`` is the last file."""
    name = os.fsencode(named)
    head = struct.pack(">8sIIIII", MAGIC, 0, 1, 1, 512, PAGE).ljust(512, b"\0")
    end = struct.pack(">II8s", len(name), sum(name), MAGIC)
    return head + struct.pack(">I", LOCKED_BYTE // PAGE + 1) + name + end


def link(path, to):
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.symlink_to(to)


def plant_journal(folder):
    data = journal(of_root(folder) / "precious")
    done_as(WORKER, lambda: (folder.state / "budget.sqlite-journal").write_bytes(data))


def plant_links(folder):
    """Each user, wherever it may write, or could before, has links to what is root's, there or not."""
    place = of_root(folder)
    study = folder.study()

    def of_the_worker():
        link(folder.state / "budget.sqlite", place / DATABASE)
        link(study.lock, place / "new-lock")
        link(study.log, place / "new-log")
        link(study.training, place)
        link(folder.state / "connection-check", place / "new-check")
        link(study.results, place)
        link(folder.prepared / ("0" * 16), place)
        link(study.path / "run" / "worker.sock", place / "new-socket")

    def of_the_node():
        for name in ("node.pub", "ca.crt", "node.json"):
            link(study.node.path / name, folder.path / "key")
        for name in ("supernode.log", "relay.log", "flower"):
            link(study.node.written / name, place / f"new-{name}")

    done_as(WORKER, of_the_worker)
    done_as(NODE, of_the_node)


def plant_second_names(folder):
    for place in (folder.state, folder.prepared, folder.study().store, folder.study().node.written):
        os.link(of_root(folder) / "precious", place / "precious")  # as a user may where the system protects no links


PLANTS = {"a journal": plant_journal, "links": plant_links, "second names": plant_second_names}


def init(folder, bundle):
    return site_operator.init(folder, name=SITE, data=folder.path, model="/nowhere")


def join(folder, bundle):
    return site_operator.join_study(folder, bundle, agreed=lambda agreement: True)


def budget(folder, bundle):
    commands.budget(state=folder.state, html=folder.path / "budget.html", as_json=True)


def recover(folder, bundle):
    (folder.state / DATABASE).unlink(missing_ok=True)  # as its owner can
    site_operator.recover(folder)


def without_model(act):
    """Up to where the model is loaded: by then all that users could put anywhere was read."""

    def acted(folder, bundle):
        settings = folder.path / "site.toml"
        settings.write_text(re.sub("(?m)^model = .*", 'model = "/nowhere"', settings.read_text()))
        act(folder, bundle)

    return acted


COMMANDS = {
    "init": init,
    "recover": recover,
    "join": join,
    "leave": lambda folder, bundle: site_operator.leave(folder, folder.study()),
    "start": lambda folder, bundle: site_programs.start(
        folder, folder.joined(), stopped=lambda: True, say=lambda line: None
    ),
    "check": without_model(lambda folder, bundle: commands.check(folder.path)),
    "prepare": without_model(lambda folder, bundle: commands.prepare(folder.path)),
    "forget": lambda folder, bundle: commands.forget(folder.path),
    "data": without_model(lambda folder, bundle: commands.data(folder.path)),
    "data --delete": lambda folder, bundle: commands.data(folder.path, delete=True, yes=True),
    "check --connect": lambda folder, bundle: list(check_connection(folder, folder.study())),
    "worker": without_model(lambda folder, bundle: site_programs.worker(folder, folder.study())),
    "node": lambda folder, bundle: site_programs.node(folder, folder.study(), stopped=lambda: True),
    "watch": lambda folder, bundle: watch(folder.path, once=True),
    "health": lambda folder, bundle: site_health.health(folder, folder.study()),
    "pause": lambda folder, bundle: commands.pause(folder.path),
    "unpause": lambda folder, bundle: commands.unpause(folder.path),
    "fetch": lambda folder, bundle: commands.fetch(folder.path),
    "budget": budget,
    "log": lambda folder, bundle: commands.log(folder.path),
}


def run_by_root(act):
    """Each in a process of its own, as commands are: some go on as another user for good."""
    child = os.fork()
    if not child:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        with contextlib.suppress(BaseException):
            act()
        os._exit(0)
    os.waitpid(child, 0)


@AS_ROOT
@pytest.mark.parametrize("plant", PLANTS.values(), ids=list(PLANTS))
@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_nothing_that_a_user_put_into_its_folders_leads_root_anywhere(site, made, plant, command):
    plant(site)
    before, key = seen(site), (site.path / "key").read_bytes()
    run_by_root(lambda: command(site, made[1]))
    assert seen(site) == before
    assert key not in (site.path / "site.json").read_bytes()


@AS_ROOT
def test_every_command_of_a_site_is_among_those_that_were_tried():
    tried = {name.split()[0] for name in COMMANDS}
    assert {each.callback.__name__ for each in commands.client.registered_commands if each.callback} == tried


@AS_ROOT
def test_what_a_site_sees_of_its_training_is_read_by_the_worker_s_user_and_not_by_the_node_s(site):
    folder = site.study().training
    done_as(WORKER, lambda: TrainingView(folder, at=lambda: (1, 1)) and None)
    for name in (STEPS, *(path.name for path in folder.glob("events*"))):
        assert done_as(WORKER, lambda name=name: "never" in (folder / name).read_bytes().decode(errors="replace"))
        assert done_as(NODE, lambda name=name: (folder / name).read_bytes().decode()) == "PermissionError"


@AS_ROOT
def test_what_another_user_had_before_is_given_whole_or_not_at_all(site):
    """Whoever owned the folder before root gave it on may have put second names of root's files there."""
    plant_second_names(site)
    os.chown(site.state, 65531, 65531)
    with pytest.raises(StorageError, match="has a second name"):
        hand_over(site, SiteUsers(worker=WORKER, node=NODE))
    assert (of_root(site) / "precious").stat().st_uid == 0
    (site.state / "precious").unlink()
    (site.state / "below").mkdir()
    (site.state / "below" / "file").touch()
    hand_over(site, SiteUsers(worker=WORKER, node=NODE))
    owners = {path.stat().st_uid for path in (site.state, *site.state.rglob("*"))}
    assert owners == {WORKER.uid}


@AS_ROOT
def test_what_the_node_reads_is_root_s_and_is_refused_where_it_is_another_s(site):
    node = site.study().node
    assert stat.S_IMODE(node.path.stat().st_mode) == 0o750
    assert done_as(NODE, lambda: node.settings().address) == "localhost:9"
    assert done_as(NODE, lambda: (node.path / "node.json").unlink()) == "PermissionError"
    os.chown(node.path, NODE.uid, NODE.gid)
    with pytest.raises(StorageError, match="it is another user's"):
        hand_over(site, SiteUsers(worker=WORKER, node=NODE))


@AS_ROOT
def test_a_site_of_another_user_s_is_that_user_s_for_root_s_commands_too(site):
    """Of a folder without users in it, whose owner ran ``client init``."""
    os.chown(site.path, WORKER.uid, WORKER.gid)
    reading, writing = os.pipe()

    def act():
        site_of(site.path)
        os.write(writing, str(os.geteuid()).encode())

    run_by_root(act)
    assert os.read(reading, 9) == str(WORKER.uid).encode()


@AS_ROOT
def test_what_is_done_as_another_user_comes_back_and_so_does_its_refusal():
    def refuse():
        raise StudyError("no", why="because", fix="nothing")

    assert owner.done_as(WORKER, lambda: [os.geteuid(), os.getgroups()]) == [WORKER.uid, []]
    with pytest.raises(StudyError, match="no") as refused:
        owner.done_as(WORKER, refuse)
    assert refused.value.fix == "nothing"
    with pytest.raises(StorageError, match=r"could not do this \(ZeroDivisionError\)"):
        owner.done_as(WORKER, lambda: 1 // 0)
    with pytest.raises(GrandRoundsError, match="it ended"):
        owner.done_as(WORKER, lambda: os._exit(1))
    assert os.geteuid() == 0
