"""The aggregation server's folder: keys, certificates, the sites it knows, its settings, and the study."""

import tomllib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from ...common.crypto.identity import GivenKey, Identity, Name, read_key
from ...common.errors import StorageError, StudyError
from ...common.schema import Section, Spelt, Words, read_settings, validated
from ...common.study.artefacts import MANIFEST
from ...common.system.files import write_atomically
from ...common.system.locks import alone, in_turn, is_held
from .progress_file import ProgressFile
from .study_folder import StudyFolder

KEY: Final = "server.key"
SETTINGS: Final = "server.toml"
SITES: Final = "sites.json"
STUDIES: Final = "studies"
FROZEN_ADAPTER: Final = "frozen-adapter.bin"
Host = Annotated[str, Spelt(r"^[A-Za-z0-9.:-]{1,253}$", "needs a host's name or address, without a port")]
Port = Annotated[int, Field(ge=1, le=65535)]
_WHY: Final = "the study goes on as what it was begun as"


class ServerSettings(Section):
    """``server.toml``: how hospitals reach the server, and what it evaluates adapters on.

    The gate listens on ``bind``:``port``, which sites reach as ``host``:``port``; the SuperLink on ``superlink_port``
    of loopback alone. ``model`` is the base model's folder, where it is not found by the name that the study gives it.
    """

    host: Host = "localhost"
    bind: str = "0.0.0.0"  # noqa: S104 (the gate is what hospitals reach)
    port: Port = 9092
    superlink_port: Port = 9093
    model: Path | None = Field(default=None, strict=False)
    evaluation: Path = Field(strict=False)
    evaluation_source: Words = "records that the server's operator gave"

    @property
    def address(self) -> str:
        """Where a site's node finds the gate."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def superlink(self) -> str:
        """Where this machine finds the SuperLink."""
        return f"localhost:{self.superlink_port}"

    @property
    def superlink_address(self) -> tuple[str, int]:
        """Where the SuperLink listens."""
        return "127.0.0.1", self.superlink_port


class EnrolledSite(Section):
    """A site that the server knows by its keys; ``node_id`` is Flower's, once Flower has its node."""

    public_key: GivenKey
    node_key: str
    node_id: int | None = None


class _Sites(Section):
    sites: dict[Name, EnrolledSite]
    withdrawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class ServerFolder:
    """What lies where below ``path``. All of it is the server's alone, but for ``study.zip`` and ``study/``."""

    path: Path

    @property
    def home(self) -> "ServerFolder":
        """The folder of the server's first study, below which those of the others are."""
        beside = self.path.absolute().parent
        is_another = beside.name == STUDIES and (beside.parent / SETTINGS).is_file()
        return ServerFolder(beside.parent) if is_another else self

    @property
    def certificates(self) -> Path:
        """What hospitals see: the gate's certificate with its key, and the authority that they are to trust."""
        return self.path / "tls"

    @property
    def flower(self) -> Path:
        """What Flower's programs keep, and their logs."""
        return self.path / "flower"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder, which has nothing of its user's; absolute, for the environment of a program."""
        return (self.flower / "home").absolute()

    @property
    def inside(self) -> Path:
        """Certificates between the programs of this machine."""
        return self.flower / "tls"

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
    def policies(self) -> Path:
        """What each site's policy has to allow for the study, a file each."""
        return self.path / "policies"

    @property
    def study(self) -> StudyFolder:
        """What the study leaves, and its checkpoints."""
        return StudyFolder(self.path / "study")

    @property
    def has_study(self) -> bool:
        """Whether the study is fixed: its manifest is written."""
        return (self.study.path / MANIFEST).is_file()

    @property
    def progress(self) -> ProgressFile:
        """What happens in the study, for whoever follows it."""
        return ProgressFile(self.path / "progress.jsonl")

    def running(self) -> AbstractContextManager[None]:
        """Hold the study for this process alone. Raises StudyError if another runs it."""
        taken = StudyError(
            "the study runs already",
            why="two processes would begin the same attempts",
            fix="follow it with `grandrounds server run`, or stop that one first",
        )
        return alone(self._study_lock, taken=taken)

    @property
    def is_running(self) -> bool:
        """Whether a process runs the study."""
        return is_held(self._study_lock)

    @property
    def _study_lock(self) -> Path:
        return self.flower / "study.lock"

    def serving(self) -> AbstractContextManager[None]:
        """Hold the server's programs for this process alone. Raises StudyError if another has started them."""
        taken = StudyError(
            f"the server in {self.path} is started already",
            why="two SuperLinks would write one database",
            fix="use that one, or stop it first",
        )
        return alone(self._server_lock, taken=taken)

    @property
    def is_serving(self) -> bool:
        """Whether the server's programs are started."""
        return is_held(self._server_lock)

    @property
    def _server_lock(self) -> Path:
        return self.flower / "server.lock"

    def identity(self) -> Identity:
        """The server's key: 32 bytes in hex, which no other user may read. Raises StorageError."""
        path = self.path / KEY
        try:
            return read_key(path, whose="the server's", instead="a new server")
        except (OSError, ValueError) as error:
            fix = "put back the file; a folder without it begins with `grandrounds server init`"
            raise _damaged(path, fix=fix) from error

    def settings(self) -> ServerSettings:
        """The settings, whose paths start from this folder. Raises StudyError that names the field."""
        settings = read_settings(ServerSettings, self.path / SETTINGS, made_by="grandrounds server init")
        places = {
            name: self.path / place
            for name in ("model", "evaluation")
            if (place := getattr(settings, name)) is not None
        }
        return settings.model_copy(update=places)

    def write_settings(self, text: str) -> None:
        """Write ``server.toml``, unless there is one. Raises StudyError that names the field, and StorageError."""
        if not (self.path / SETTINGS).exists():
            validated(ServerSettings, tomllib.loads(text))
            write_atomically(self.path / SETTINGS, text.encode())

    def sites(self) -> dict[str, EnrolledSite]:
        """The sites that were enrolled, by name. Raises StorageError."""
        return self._enrolled().sites

    @property
    def withdrawn(self) -> frozenset[int]:
        """Ids of nodes that are to be let in no more, of which Flower may not have heard. Raises StorageError."""
        return frozenset(self._enrolled().withdrawn)

    def _enrolled(self) -> _Sites:
        path = self.path / SITES
        try:
            return _Sites.model_validate_json(path.read_bytes()) if path.exists() else _Sites(sites={})
        except (OSError, ValidationError, ValueError) as error:
            raise _damaged(path, fix="put back the file, or remove it and enroll the sites again") from error

    def enrolling(self) -> AbstractContextManager[None]:
        """Change who is enrolled, and Flower's nodes, in turn with whoever else does. Raises StorageError."""
        return in_turn(self.flower / "sites.lock")

    def save_sites(self, sites: dict[str, EnrolledSite], *, withdrawn: Iterable[int] | None = None) -> None:
        """Write who is enrolled, and unless it is as before, who is no more. Raises StorageError."""
        gone = self.withdrawn if withdrawn is None else withdrawn
        # A node's id has 64 bits, more than canonical JSON has for an integer.
        text = _Sites(sites=sites, withdrawn=tuple(gone)).model_dump_json(indent=2)
        write_atomically(self.path / SITES, text.encode())

    def frozen_adapter(self) -> bytes:
        """The adapter's public tensors, as little-endian float32. Raises StorageError."""
        path = self.path / FROZEN_ADAPTER
        try:
            return path.read_bytes()
        except OSError as error:
            raise _damaged(path, fix="put back the file; the bundle study.zip has it") from error


def _damaged(path: Path, *, fix: str) -> StorageError:
    return StorageError(f"{path} is damaged or cannot be read", why=_WHY, fix=fix)
