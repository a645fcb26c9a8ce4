"""Flower's own command line, as the server's operator would call it on the machine of its SuperLink."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...common.errors import StudyError
from ...common.system.files import write_atomically
from ...common.system.processes import environment
from ...server.run.server_folder import ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE
from ..flower.archive import app_folder

_PATIENCE_S: Final = 90.0
_CONNECTION: Final = "study"
_IN_USE: Final = "key already in use"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that Flower knows: ``status`` is registered, online or offline; ``since`` when it became so.

    One that is registered has not been online since its key was let in.
    """

    node_id: int
    status: str
    since: str


class FlowerCli:
    """Calls ``flwr`` for a server's SuperLink, with a home of its own that has nothing of its user's."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder

    def configure(self) -> None:
        """Write where the SuperLink is, and who vouches for it. Raises StudyError and StorageError."""
        authority = str((self._folder.inside / CA_CERTIFICATE).absolute())
        text = f"""[superlink]
default = "{_CONNECTION}"

[superlink.{_CONNECTION}]
address = {json.dumps(self._folder.settings().superlink)}
root-certificates = {json.dumps(authority, ensure_ascii=False)}
"""
        write_atomically(self._folder.flower_home / "config.toml", text.encode())

    def register(self, name: str, node_key: str) -> int | None:
        """Enroll a node by its public key: its id, or None where that key is enrolled already. Raises StudyError."""
        path = self._folder.flower_home / f"{name}.pub"
        write_atomically(path, node_key.strip().encode() + b"\n")
        try:
            return int(self._call("supernode", "register", str(path), _CONNECTION, "--name", name)["node-id"])
        except StudyError as error:
            if _IN_USE in error.what:
                return None
            raise

    def unregister(self, node_id: int) -> None:
        """Let a node in no more, nor any other under its key. Raises StudyError."""
        self._call("supernode", "unregister", str(node_id), _CONNECTION)

    def nodes(self) -> Sequence[Node]:
        """The nodes that are enrolled. Raises StudyError."""
        listed = self._call("supernode", "list", _CONNECTION)["nodes"]
        return [_node(fields) for fields in listed if fields["status"] != "unregistered"]

    def run(self) -> int:
        """Start a run of the app on the server's folder; its id. Raises StudyError."""
        config = f"server={json.dumps(str(self._folder.path.absolute()), ensure_ascii=False)}"
        return int(self._call("run", str(app_folder()), _CONNECTION, "--run-config", config)["run-id"])

    def run_status(self, run_id: int) -> str:
        """Where a run stands: pending, starting, running, or finished and how. Raises StudyError."""
        listed = self._call("list", _CONNECTION, "--run-id", str(run_id))["runs"]
        return next((str(run["status"]) for run in listed if run["run-id"] == str(run_id)), "")

    def _call(self, *arguments: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).with_name("flwr")), *arguments, "--format", "json"]
        env = environment(FLWR_HOME=str(self._folder.flower_home))
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
            said = json.loads(done.stdout)
        except subprocess.TimeoutExpired as error:
            raise _failed(arguments, f"no answer within {_PATIENCE_S:g} s") from error
        except ValueError as error:
            raise _failed(arguments, f"no answer in JSON: {done.stderr or done.stdout}") from error
        if not isinstance(said, dict) or not said.get("success"):
            raise _failed(arguments, str(said.get("error-message", done.stdout)) if isinstance(said, dict) else "")
        return said


def _node(fields: dict[str, str]) -> Node:
    since = {"online": "online-at", "offline": "offline-at"}.get(fields["status"], "created-at")
    return Node(node_id=int(fields["node-id"]), status=fields["status"], since=fields[since])


def _failed(arguments: Sequence[str], said: str) -> StudyError:
    return StudyError(
        f"flwr {' '.join(arguments[:2])} failed: {' '.join(said.split())[:400]}",
        why="sites reach the study through Flower's SuperLink",
        fix="start it with `grandrounds server start`; flower/superlink.log in its folder says what it met",
    )
