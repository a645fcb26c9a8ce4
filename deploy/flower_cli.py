"""Flower's own command line, as the server's operator would call it."""

import hashlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ..common.errors import StudyError
from ..common.processes import environment
from .server_folder import ServerFolder

_PATIENCE_S: Final = 90.0
_CONNECTION: Final = "study"
_ALREADY_IN_USE: Final = "already in use"


def app_folder() -> Path:
    """The Flower app, which names installed code and has none of its own."""
    return Path(str(resources.files(__package__).joinpath("flower_app")))


def app_sha256() -> str:
    """The hash of the app's archive, as Flower builds it on this machine."""
    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(build_fab_from_disk(app_folder())).hexdigest()


class FlowerCli:
    """Calls ``flwr`` for the SuperLink of a server's folder."""

    def __init__(self, folder: ServerFolder) -> None:
        self._home = folder.flower / "home"
        self._folder = folder

    def configure(self) -> None:
        """Write where the SuperLink is."""
        self._home.mkdir(parents=True, exist_ok=True)
        port = self._folder.settings().superlink_port
        certificates = (self._folder.certificates / "ca.crt").absolute()
        text = f"""[superlink]
default = "{_CONNECTION}"
[superlink.{_CONNECTION}]
address = "localhost:{port}"
root-certificates = {json.dumps(str(certificates))}
"""
        (self._home / "config.toml").write_text(text, encoding="utf-8")

    def register(self, name: str, node_key: str) -> None:
        """Enrol a node under its site's name, if it is not. Raises StudyError."""
        path = self._home / f"{name}.pub"
        path.write_text(node_key.strip() + "\n", encoding="ascii")
        said, text = self._call("supernode", "register", str(path), _CONNECTION, "--name", name, "--format", "json")
        if not said.get("success") and _ALREADY_IN_USE not in text:
            raise _failed("the node of a site cannot be enrolled", text)

    def run(self) -> int:
        """Start the study's run; its id. Raises StudyError."""
        server = f"server={json.dumps(str(self._folder.path.absolute()))}"
        said, text = self._call("run", str(app_folder()), _CONNECTION, "--format", "json", "--run-config", server)
        if not said.get("success"):
            raise _failed("the run cannot be started", text)
        return int(said["run-id"])

    def _call(self, *arguments: str) -> tuple[dict[str, Any], str]:
        """What ``flwr`` said, as JSON if it is that, and as it is."""
        command = [str(Path(sys.executable).parent / "flwr"), *arguments]
        try:
            done = subprocess.run(
                command,
                env=environment(FLWR_HOME=str(self._home.absolute())),
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failed("the SuperLink does not answer", f"after {_PATIENCE_S:g} s") from error
        text = done.stdout + done.stderr
        try:
            said = json.loads(text[text.index("{") : text.rindex("}") + 1])
        except ValueError:
            said = {}
        return said if isinstance(said, dict) else {}, text


def _failed(what: str, text: str) -> StudyError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return StudyError(
        f"{what}: {' '.join(lines)[:400]}",
        why="sites reach the study through Flower's SuperLink",
        fix="start it with `grandrounds server start`, and look into its logs in the folder flower/",
    )
