"""How a study's programs are at a site: what the worker says of itself, and what keeps the node from its server."""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...client.node.folder import NodeFolder
from ...client.node.supernode import NODE_LOG, RELAY_LOG
from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...client.site.prepared import is_preparing
from ...client.worker_socket import health as asked
from ...common.errors import StudyError
from ...common.system.files import last_line, without_colours
from ...common.system.locks import is_held
from .connection import try_way
from .owner import done_as
from .users import SiteUsers

# What a SuperNode logs once it is connected (the group), and what it logs before, or where it lost its server.
_CONNECTION: Final = re.compile(
    r"(SuperNode ID:|Connection successful)|Starting Flower SuperNode|attempt failed, retry"
)


@dataclass(frozen=True, kw_only=True)
class Health:
    """``worker`` is what it says of itself, where it answers; ``states`` say in words how worker, node and relay are.

    It ``is_well`` where the worker answers, and the node is connected or another user's to see; also while the site is
    paused.
    """

    worker: dict[str, Any] | None
    states: dict[str, str]
    is_well: bool


def health(folder: SiteFolder, study: JoinedStudy) -> Health:
    """How worker, node and relay are; of a node that runs and is not connected, the way to the server is tried.

    Raises StudyError and StorageError where none of them could run.
    """
    study.check_code()
    settings, users = folder.settings(), SiteUsers.of(folder.settings())
    as_worker, as_node = (users.worker, users.node) if users and os.geteuid() == 0 else (None, None)
    start = f"start it: grandrounds client start {folder.path}"
    if os.access(study.path, os.W_OK) and study.is_started:  # which its worker's user cannot ask
        start = "`grandrounds client start` starts it again"
    said, worker = done_as(as_worker, lambda: _worker(folder, study, study.socket(settings.socket), start))
    if said is not None and said["paused"]:
        worker += f"; it takes part in nothing new until: grandrounds client unpause {folder.path}"
    found = done_as(as_node, lambda: _node(study.node))
    if found is None:
        node, relay, connected = (f"not known: it is for root, or the user {settings.node_user}, to ask",) * 2 + (True,)
    else:
        running, connected, last, relay = found
        node = (
            f"connected to {study.node.settings().address}" if connected else _apart(study.node, running, last, start)
        )
    states = {"worker": worker, "node": node, "relay": relay}
    return Health(worker=said, states=states, is_well=said is not None and connected)


def _worker(folder: SiteFolder, study: JoinedStudy, socket: Path, start: str) -> tuple[dict[str, Any] | None, str]:
    """What it says of itself, and that in words."""
    try:
        said = asked(socket)
    except OSError as error:
        if is_held(study.lock):
            first = "the records are being prepared" if is_preparing(folder.prepared) else "it loads model and records"
            return None, f"runs, and does not answer yet ({error}): {first} first"
        return None, f"does not run; {_last(study.log, study.path / 'worker.out')}; {start}"
    doing = f"answers {said['exchange']}" if said["exchange"] else "waits to be asked"
    up_since = said["up_since"].replace("T", " ").replace("+00:00", "Z")  # as the server's status has it
    return said, f"up since {up_since}, last attempt {said['last_attempt']}, {doing}"


def _node(node: NodeFolder) -> tuple[bool, bool, str, str] | None:
    """Whether it runs and is connected, what happened to it last, and how the relay is; None where this may not see."""
    if not os.access(node.written, os.R_OK | os.W_OK | os.X_OK):
        return None
    running = is_held(node.lock)
    said = b"".join(path.read_bytes() for path in sorted(node.written.glob(f"{NODE_LOG}*"), reverse=True))
    marks = [mark.group(1) for mark in _CONNECTION.finditer(without_colours(said))]
    relay = ("" if running else "does not run; ") + (last_line(node.written / RELAY_LOG) or "it was never started")
    return running, running and bool(marks) and marks[-1] is not None, _last(node.log), relay


def _apart(node: NodeFolder, running: bool, last: str, start: str) -> str:
    """Why a node is not connected. Raises StudyError and StorageError where it could not run."""
    settings = node.settings()
    if not running:
        return f"does not run; {last}; {start}"
    try:
        for _ in try_way(node, settings):
            pass
    except StudyError as error:
        return f"is not connected: {error.what}. What to do: {error.fix}"
    return f"is not connected, and nothing on the way to {settings.address} hinders it; {last}"


def _last(*logs: Path) -> str:
    """The last event in whichever of these was written last."""
    newest = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=None)
    if newest is None:
        return "it was never started"
    line = last_line(newest)
    with suppress(ValueError, TypeError, KeyError):  # the worker's log, which is JSON
        line = json.loads(line)["event"]
    return f"its last word: {line} ({newest})"
