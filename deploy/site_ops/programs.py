"""What runs on a site's machine: the worker, the node, and who keeps both running."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Final

from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy, not_joined
from ...client.site.prepared import PreparedRecords
from ...client.site.site_log import SiteLog
from ...client.worker.log import hide_texts, log_to
from ...common.errors import GrandRoundsError, StorageError, StudyError
from ...common.system.locks import alone
from ...common.system.ports import await_free
from ...common.system.privileges import User, leave_networks, networks
from ...common.system.processes import PROGRAM, environment
from ...common.system.supervision import Program, stop_all, tend
from .owner import act_as, done_as
from .users import WARNING, SiteUsers, hand_over, operators_users

_GRACE_S: Final = 60.0  # the worker finishes the answer in hand
_PORT_S: Final = 15.0  # a SuperNode whose supervisor was killed takes a while to end
_log = logging.getLogger(__name__)


def runnable(folder: SiteFolder, *, say: Callable[[str], None]) -> list[JoinedStudy]:
    """The studies that pinned the program that is installed; of others, which an update left behind, it is said.

    Raises StudyError where all are others.
    """
    found, other = [], None
    for study in folder.joined():
        try:
            study.check_code()
            found.append(study)
        except StudyError as error:
            other = error
            how = f"if it is over, `grandrounds client leave {folder.path} {study.name}` keeps its results"
            say(f"study {study.name} is not started: {error.what}; {how}")
    if other is not None and not found:
        raise other
    return found


def start(
    folder: SiteFolder, studies: Sequence[JoinedStudy], *, stopped: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Keep worker and node of each of ``studies`` running, each a process of its own, until ``stopped``.

    Started by root, each runs as its user, if site.toml names them, and the worker without a network. Raises StudyError
    and StorageError, also where no study was joined, where one is started already, and where a node's port is taken.
    """
    users = operators_users(folder.settings())
    if not studies:
        raise not_joined(folder.path)
    for study in studies:
        study.manifest(), study.node.settings()
    if users is not None:
        hand_over(folder, users)
    elif os.geteuid() == 0:
        say(WARNING)
    as_worker, as_node = (users.worker, users.node) if users else (None, None)
    for name in done_as(as_worker, lambda: _unprepared(folder, studies)):
        say(
            f"the worker of study {name} prepares the records first, which may take long; with its progress shown, and "
            f"before the study is started: grandrounds client prepare {folder.path} {name}"
        )
    programs: list[Program] = []
    with ExitStack() as held:
        for study in studies:
            held.enter_context(study.starting())
            _await_port(study, say)
        SiteLog(folder).note("started", studies=[study.name for study in studies])
        held.callback(lambda: stop_all(programs, grace_s=_GRACE_S))
        try:
            for study in studies:
                programs.append(_program("worker", folder, study, say, user=as_worker, offline=True))
                programs.append(_program("node", folder, study, say, user=as_node, offline=False))
        except PermissionError as error:
            raise StudyError(
                f"a user that site.toml names cannot run {PROGRAM}",
                why="each part of the site is a program of its own, run by its own user",
                fix="install the program, and the Python that runs it, where every user may read them, such as /opt",
            ) from error
        say(f"whether all is well, and if not why: grandrounds client health {folder.path}")
        tend(programs, stopped)


def _unprepared(folder: SiteFolder, studies: Sequence[JoinedStudy]) -> list[str]:
    """The studies whose workers will prepare records before they answer; what keeps them from it, they say."""
    try:
        here = PreparedRecords.of(folder)
        return [study.name for study in studies if not here.has(study.manifest().study.data)]
    except GrandRoundsError:
        return []


def _await_port(study: JoinedStudy, say: Callable[[str], None]) -> None:
    """Until the study's SuperNode can have its port. Raises StudyError."""
    await_free(
        ("127.0.0.1", study.node.settings().runtime_port),
        program=f"the SuperNode of study {study.name}",
        setting="runtime_port in site.toml, and join the study again",
        patience_s=_PORT_S,
        say=say,
    )


def _program(
    name: str,
    folder: SiteFolder,
    study: JoinedStudy,
    say: Callable[[str], None],
    *,
    user: User | None,
    offline: bool,
) -> Program:
    command = (str(PROGRAM), "client", name, str(folder.path.absolute()), study.name)
    log = study.path.absolute() / f"{name}.out"
    return Program(f"{name} {study.name}", command, log=log, env=environment(), say=say, user=user, offline=offline)


def worker(folder: SiteFolder, study: JoinedStudy) -> None:
    """Answer at a study's socket until SIGTERM: the one program that reads the records and has the key.

    Run by root it becomes the worker's user first, and has no network. Raises what ``open_site`` and ``serve`` do.
    """
    hide_texts()
    study.check_code()
    study.manifest()  # whose damage is told before this process gives up what it cannot have back
    settings = folder.settings()
    users = SiteUsers.of(settings)
    leave_networks()
    if users is not None:
        act_as(users.worker)
    # Loaded here, by the worker's user: they bring the model's libraries.
    from ...client.site.assembly import open_site
    from ...client.worker.listener import serve

    log_to(study.log)
    if reachable := networks():
        _log.warning("the worker has a network (%s) and needs none", ", ".join(reachable))
    asking = (*settings.users, users.node.uid) if users else settings.users
    try:
        serve(open_site(folder, study), study.socket(settings.socket), users=asking)
    except GrandRoundsError as error:  # for `client health`, wherever standard error goes
        _log.error("%s", error)
        raise


def node(folder: SiteFolder, study: JoinedStudy, *, stopped: Callable[[], bool]) -> None:
    """Carry messages between server and worker until ``stopped``, with nothing but the study's ``node/`` and socket.

    Run by root it becomes the node's user first. Raises StudyError.
    """
    if os.geteuid() == 0 and (users := SiteUsers.of(folder.settings())) is not None:
        act_as(users.node)
    supernode = study.node.supernode()
    taken = StudyError(
        f"the node of study {study.name} runs already",
        why="two nodes of one key would take each other's messages",
        fix="use that one, or stop it first",
    )
    with alone(study.node.lock, taken=taken):
        _log_events(study.node.log)
        supernode.run(stopped)


def _log_events(path: Path) -> None:
    """What happens to the node goes to its own file too, where ``client health`` finds it. Raises StorageError."""
    try:
        handler = WatchedFileHandler(path)
    except OSError as error:
        raise StorageError(
            f"the log {path} cannot be written: {error.strerror}",
            why="why a node does not reach its server stands there",
            fix="make it writable for the node's user",
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger(__name__.partition(".")[0]).addHandler(handler)
