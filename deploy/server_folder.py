"""The aggregation server's folder: keys, certificates, the sites it knows, its settings, and the study."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from ..common.errors import StorageError, StudyError
from ..common.files import make_folder, write_atomically
from ..common.identity import Hex32, Identity, Name
from ..common.study import Section, read_toml, validated
from .study_folder import StudyFolder

_KEY: Final = "server.key"
_SETTINGS: Final = "server.toml"
_SITES: Final = "sites.json"
_FROZEN: Final = "frozen-adapter.bin"
_PROGRESS: Final = "progress.jsonl"
_WHY: Final = "the study goes on as what it was begun as"


class Settings(Section):
    """``server.toml``: how hospitals reach the server, its own loopback port, and what it evaluates adapters on."""

    host: str = "localhost"
    port: int = Field(default=9092, ge=1, le=65535)
    superlink_port: int = Field(default=9093, ge=1, le=65535)
    evaluation: Path = Field(strict=False)
    evaluation_words: str = "records that the server's operator gave"


class Enrolled(Section):
    """A site that the server knows; ``registered`` once Flower knows its node by the site's name."""

    public_key: Hex32
    node_key: str
    registered: bool = False


class _Sites(Section):
    sites: dict[Name, Enrolled]


@dataclass(frozen=True)
class ServerFolder:
    """What lies where below ``path``, of which nothing is anybody else's."""

    path: Path

    @property
    def certificates(self) -> Path:
        """The folder of certificates and their keys."""
        return self.path / "tls"

    @property
    def flower(self) -> Path:
        """The folder of what Flower keeps."""
        return self.path / "flower"

    @property
    def secret(self) -> Path:
        """By which the SuperLink knows its executor."""
        return self.flower / "exec.secret"

    @property
    def study_toml(self) -> Path:
        """The study as people write it."""
        return self.path / "study.toml"

    @property
    def bundle(self) -> Path:
        """The study as sites get it."""
        return self.path / "study.zip"

    @property
    def study(self) -> StudyFolder:
        """The study's folder, which may be handed out but for its checkpoints."""
        return StudyFolder(self.path / "study")

    @property
    def progress(self) -> Path:
        """What happens in the study, one JSON object a line."""
        return self.path / _PROGRESS

    def make_key(self) -> None:
        """The server's own key, unless there is one. Raises StorageError."""
        if not (self.path / _KEY).exists():
            write_atomically(self.path / _KEY, Identity.generate().secret.hex().encode(), mode=0o600)

    def identity(self) -> Identity:
        """The server's key. Raises StorageError."""
        try:
            return Identity.from_bytes(bytes.fromhex((self.path / _KEY).read_text("ascii").strip()))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.path / _KEY} is damaged or cannot be read",
                why="the server signs with it what the sites follow",
                fix="run `grandrounds server init` for a new server, or put back the file",
            ) from error

    def settings(self) -> Settings:
        """The settings; paths start from this folder. Raises StudyError."""
        settings = validated(Settings, read_toml(self.path / _SETTINGS))
        return settings.model_copy(update={"evaluation": self.path / settings.evaluation})

    def write_settings(self, text: str) -> None:
        """Write ``server.toml``, unless there is one."""
        if not (self.path / _SETTINGS).exists():
            write_atomically(self.path / _SETTINGS, text.encode())

    def sites(self) -> dict[str, Enrolled]:
        """The sites that were enrolled. Raises StorageError."""
        path = self.path / _SITES
        try:
            return _Sites.model_validate_json(path.read_bytes()).sites if path.exists() else {}
        except (OSError, ValidationError, ValueError) as error:
            raise StorageError(
                f"{path} is damaged", why=_WHY, fix="put back the file, or enrol the sites again"
            ) from error

    def save_sites(self, sites: dict[str, Enrolled]) -> None:
        """Write the sites that were enrolled."""
        write_atomically(self.path / _SITES, _Sites(sites=sites).model_dump_json(indent=2).encode())

    def frozen_adapter(self) -> bytes:
        """The adapter's public tensors, float32. Raises StorageError."""
        try:
            return (self.path / _FROZEN).read_bytes()
        except OSError as error:
            raise StorageError(
                f"{self.path / _FROZEN} cannot be read", why=_WHY, fix="put back the file; the bundle has it"
            ) from error

    def save_frozen_adapter(self, data: bytes) -> None:
        """Write them."""
        write_atomically(self.path / _FROZEN, data)

    def tell(self, event: dict[str, Any]) -> None:
        """Add a line to the progress."""
        with self.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the study for this process alone. Raises StudyError if another has it."""
        make_folder(self.path)
        lock = os.open(self.path / "study.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StudyError(
                    "the study runs already", why="two would begin the same attempts", fix="follow it: server status"
                ) from error
            yield
        finally:
            os.close(lock)

    @property
    def is_running(self) -> bool:
        """Whether a process holds the study."""
        try:
            with self.running():
                return False
        except StudyError:
            return True
