"""A site's folder: its key, policy and settings, and the study that it joined."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from ...common.crypto.identity import Identity, Name, read_key
from ...common.data.identifiers import Similar
from ...common.errors import StorageError, StudyError
from ...common.model.devices import DEVICE_PATTERN, PROCESSORS
from ...common.schema import Section, read_settings
from ...common.study.artefacts import MANIFEST
from ...common.study.manifest import Manifest
from ...common.system.code_pin import check_code_of
from ...common.system.files import fsync, write_atomically
from ..budget.patients import FingerprintKey
from ..budget.policy import Policy, read_policy
from ..node.folder import NodeFolder

KEY: Final = "key"
FINGERPRINT_KEY: Final = "fingerprint.key"
POLICY: Final = "policy.toml"
SETTINGS: Final = "site.toml"
FROZEN_ADAPTER: Final = "frozen-adapter.bin"
_PAUSED: Final = "paused"
RESULTS: Final = "results"
_LEFT: Final = "left"


class SiteSettings(Section):
    """What a site's machine has where, and as whom its two parts run (users by name, or by an id in quotes).

    ``held_out`` are records that nothing trains on, ``device`` is where the model computes. ``similar_identifiers``
    says whether those that differ in spelling alone are one patient's; unsaid, such records are refused. ``users`` are
    ids of those who may ask the worker beside these; ``runtime_port`` is the SuperNode's, on loopback.
    """

    name: Name
    data: Path = Field(strict=False)
    held_out: Path | None = Field(default=None, strict=False)
    similar_identifiers: Similar | None = None
    model: Path = Field(strict=False)
    device: str = Field(default=PROCESSORS, pattern=DEVICE_PATTERN)
    socket: Path = Field(default=Path("run/worker.sock"), strict=False)
    users: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    worker_user: str | None = None
    node_user: str | None = None
    runtime_port: int = Field(default=9094, ge=1, le=65535)


@dataclass(frozen=True)
class SiteFolder:
    """What a site keeps below ``path``, and nobody else's: its key, policy and settings; the study that it joined."""

    path: Path

    @property
    def state(self) -> Path:
        """Where budgets, attempts and the ledger are."""
        return self.path / "state"

    @property
    def node(self) -> NodeFolder:
        """What Flower's side needs, and all that it reaches."""
        return NodeFolder(self.path / "node")

    @property
    def log(self) -> Path:
        """The file that the worker's log goes to."""
        return self.path / "worker.log"

    def settings(self) -> SiteSettings:
        """The settings, whose paths start from this folder. Raises StudyError that names the field."""
        settings = read_settings(SiteSettings, self.path / SETTINGS, made_by="grandrounds client init")
        given = {name: getattr(settings, name) for name in ("data", "held_out", "model", "socket")}
        return settings.model_copy(update={name: self.path / place for name, place in given.items() if place})

    def policy(self) -> Policy:
        """The site's policy. Raises StudyError that names the field."""
        return read_policy(self.path / POLICY)

    def identity(self) -> Identity:
        """The site's key: 32 bytes in hex, which no other user may read. Raises StorageError."""
        path = self.path / KEY
        try:
            return read_key(path, whose="this site's", instead="a new key")
        except FileNotFoundError as error:
            raise StorageError(
                f"there is no {path}",
                why="the site signs with it, and the others know the site by it",
                fix="put it back; `grandrounds client init` makes a new key, which is another site's to all others",
            ) from error
        except (OSError, ValueError) as error:
            raise _damaged(path) from error

    def fingerprint_key(self) -> FingerprintKey:
        """The secret under which the site's state knows patients. Raises StorageError."""
        return FingerprintKey.read(self.path / FINGERPRINT_KEY)

    @property
    def has_lived(self) -> bool:
        """Whether something here shows that there was a state: a key, a study, results or what was left."""
        results = self.path / RESULTS
        return any((self.path / name).exists() for name in (KEY, MANIFEST, _LEFT)) or (
            results.is_dir() and any(results.iterdir())
        )

    def manifest(self) -> Manifest:
        """The manifest of the study that the site joined. Raises StudyError if there is none, and StorageError."""
        path = self.path / MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise StudyError(
                f"{self.path} takes part in no study",
                why="a site's worker answers for the one that its operator agreed to",
                fix="join one: grandrounds client join DIR study.zip",
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path) from error

    def check_code(self) -> None:
        """Raises StudyError unless the program that runs is the one that the study pinned, if it joined one."""
        path = self.path / MANIFEST
        try:
            check_code_of(path.read_bytes())
        except FileNotFoundError:
            return
        except OSError as error:
            raise _damaged(path) from error

    def frozen_adapter(self) -> bytes:
        """The adapter's public tensors, as little-endian float32, from the study's bundle. Raises StorageError."""
        path = self.path / FROZEN_ADAPTER
        try:
            return path.read_bytes()
        except OSError as error:
            raise _damaged(path) from error

    def forget(self, study_id: str) -> Path:
        """Take part in no study any more; the folder in which what there was of it lies. Raises StorageError."""
        left = self.path / _LEFT / study_id[:12]
        self.node.forget()
        for name in (FROZEN_ADAPTER, MANIFEST):  # the manifest last: while it is there, this can be repeated
            if (self.path / name).exists():
                write_atomically(left / name, (self.path / name).read_bytes())
                (self.path / name).unlink()
        fsync(self.path)
        return left

    def results(self, study_id: str) -> Path:
        """Where what a finished study left is kept."""
        return self.path / RESULTS / study_id[:12]

    @property
    def is_paused(self) -> bool:
        """Whether the site takes part in nothing new for now."""
        return (self.path / _PAUSED).exists()

    def pause(self) -> None:
        """Take part in nothing new, from the next message on and also after a restart. Raises StorageError."""
        write_atomically(self.path / _PAUSED, b"")

    def go_on(self) -> None:
        """Take part again."""
        (self.path / _PAUSED).unlink(missing_ok=True)


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} is damaged or cannot be read",
        why="the worker speaks for the site with it",
        fix="put back the file; what the site spent is in its state, which must never be put back from a copy",
    )
