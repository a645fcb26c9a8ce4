"""What Flower's side of a site needs and writes, and all that it may reach beside the worker's socket."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from ...common.crypto.identity import Hex32, canonical_json
from ...common.errors import StudyError, reason
from ...common.schema import Address, Section, Version
from ...common.system.code_pin import check_code_of
from ...common.system.files import write_atomically
from .supernode import LOG, Supernode

_SETTINGS: Final = "node.json"


class NodeSettings(Section):
    """What a node has to know of the study: where the server is (host:port), and which app archive it answers for.

    The package is the program that the study pinned. A relative ``socket`` starts from the study's folder, and
    ``timeout_s`` is how long the worker may take for an answer, and ``largest_bytes`` what no message to it exceeds.
    """

    address: Address
    app_sha256: Hex32
    socket: Path = Field(strict=False)
    runtime_port: int = Field(ge=1, le=65535)
    timeout_s: float = Field(gt=0)
    largest_bytes: int = Field(ge=1)
    package_version: Version
    package_sha256: Hex32


@dataclass(frozen=True)
class NodeFolder:
    """The folder ``path``, below a study's of a site: what the node reads, and in ``written`` what it writes."""

    path: Path

    @property
    def key(self) -> Path:
        """The node's key, by which Flower knows it."""
        return self.path / "node.key"

    @property
    def secret(self) -> Path:
        """What the SuperNode knows the relay by."""
        return self.path / "exec.secret"

    @property
    def certificates(self) -> Path:
        """The authority of the server's certificate, from the study's bundle."""
        return self.path / "ca.crt"

    @property
    def lock(self) -> Path:
        """What the node's process holds, so that there is one."""
        return self.written / "node.lock"

    @property
    def log(self) -> Path:
        """What happened to SuperNode and relay, a line for each event."""
        return self.written / LOG

    @property
    def written(self) -> Path:
        """What SuperNode and relay write: their logs, messages that come in pieces, and what Flower keeps."""
        return self.path / "var"

    def save(self, settings: NodeSettings, *, certificates: bytes) -> None:
        """Write what a study's bundle says. Raises StorageError."""
        write_atomically(self.certificates, certificates)
        write_atomically(self.path / _SETTINGS, canonical_json(settings.model_dump(mode="json")))

    @property
    def runtime_port(self) -> int | None:
        """The port that the node was given, if it was; other fields may be as another version writes them."""
        try:
            stated = json.loads((self.path / _SETTINGS).read_bytes())["runtime_port"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return stated if type(stated) is int else None

    def settings(self) -> NodeSettings:
        """What the study's bundle said. Raises StudyError, also where another program runs than the study pinned."""
        path = self.path / _SETTINGS
        try:
            text = path.read_bytes()
            check_code_of(text)
            settings = NodeSettings.model_validate_json(text)
        except FileNotFoundError as error:
            raise StudyError(
                f"there is no {path}",
                why="a node carries the messages of the one study that its site joined",
                fix="join one: grandrounds client join DIR study.zip",
            ) from error
        except (OSError, ValidationError, RecursionError) as error:
            raise StudyError(
                f"{path} cannot be read ({reason(error)})",
                why="it names the server, and the app archive that the site answers for",
                fix="run this as the node's user; if the file is damaged, join the study again",
            ) from error
        return settings.model_copy(update={"socket": self.path.parent / settings.socket})

    def supernode(self) -> Supernode:
        """SuperNode and relay, to be run. Raises StudyError."""
        settings = self.settings()
        return Supernode(
            address=settings.address,
            certificates=self.certificates,
            node_key=self.key,
            secret=self.secret,
            socket=settings.socket,
            app_sha256=settings.app_sha256,
            runtime_port=settings.runtime_port,
            folder=self.written,
            timeout_s=settings.timeout_s,
            largest_bytes=settings.largest_bytes,
        )
