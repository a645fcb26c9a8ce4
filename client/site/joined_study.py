"""A study that a site joined: its manifest, and a folder for each of the site's two programs in it."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.audit.named import named_audit
from ...common.crypto.identity import sha256
from ...common.errors import StorageError, StudyError
from ...common.study.artefacts import AUDIT, MANIFEST
from ...common.study.manifest import MANIFEST_LABEL, Manifest
from ...common.study.public_records import PublicRecords
from ...common.system.code_pin import check_code_of, other_program_of
from ...common.system.files import fsync, make_folder
from ...common.system.locks import alone, is_held
from ..node.folder import NodeFolder

FROZEN_ADAPTER: Final = "frozen-adapter.bin"
PUBLIC_RECORDS: Final = "public.jsonl"
LEFT: Final = "left"
_IN_SOCKET: Final = "{study}"


@dataclass(frozen=True)
class JoinedStudy:
    """The folder ``path``: ``site/studies/NAME``, where NAME begins the study's id.

    The study, and what the node reads, are the operator's; ``store``, ``results`` and the socket's folder are the
    worker's own.
    """

    path: Path

    @property
    def name(self) -> str:
        """How commands know it."""
        return self.path.name

    @property
    def node(self) -> NodeFolder:
        """What Flower's side needs, and all that it reaches."""
        return NodeFolder(self.path / "node")

    @property
    def store(self) -> Path:
        """What the worker keeps of this study beside the site's state."""
        return self.path / "store"

    @property
    def log(self) -> Path:
        """The file that the worker's log goes to."""
        return self.store / "worker.log"

    @property
    def training(self) -> Path:
        """Where the worker writes what the site sees of its own training, if it is to."""
        return self.store / "training"

    @property
    def machine(self) -> Path:
        """Where ``client check`` keeps how this machine computes the study."""
        return self.store / "machine.json"

    @property
    def lock(self) -> Path:
        """What the study's worker holds, so that there is one."""
        return self.store / "worker.lock"

    def starting(self) -> AbstractContextManager[None]:
        """Hold the study's programs for this process alone. Raises StudyError if another has started them."""
        taken = StudyError(
            f"study {self.name} is started already",
            why="two workers of one site could each answer in the same attempt, and together reveal its update",
            fix=f"use what runs (grandrounds client health {self.path.parents[1]} {self.name}), or stop it first",
        )
        return alone(self._start_lock, taken=taken)

    @property
    def is_started(self) -> bool:
        """Whether a process keeps the study's programs running."""
        return is_held(self._start_lock)

    @property
    def _start_lock(self) -> Path:
        return self.path / "start.lock"

    @property
    def kept(self) -> Path:
        """The worker's folder in which ``results`` is whole or is not."""
        return self.path / "results"

    @property
    def results(self) -> Path:
        """Where what the finished study left is kept."""
        return self.kept / "study"

    def socket(self, setting: Path) -> Path:
        """The worker's socket where site.toml names ``setting``; an absolute one has the study's name in it."""
        return self.path / str(setting).replace(_IN_SOCKET, self.name)

    def manifest(self) -> Manifest:
        """The study's manifest. Raises StudyError if there is none or another version's, and StorageError."""
        text = self._manifest_text()
        try:
            return Manifest.parse(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self.path / MANIFEST) from error

    def identity(self) -> tuple[str, str]:
        """The study's id and its manifest's hash, whatever version made it. Raises StudyError and StorageError."""
        text = self._manifest_text()
        try:
            return str(json.loads(text)["study_id"]), sha256(MANIFEST_LABEL + text)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise damaged(self.path / MANIFEST) from error

    def check_code(self) -> None:
        """Raises StudyError unless the program that runs is the one that the study pinned, and StorageError."""
        check_code_of(self._manifest_text())

    @property
    def other_program(self) -> str | None:
        """The program that can go on with the study, in words; None where it is this one, or cannot be read."""
        try:
            return other_program_of(self._manifest_text())
        except StorageError:  # of which whoever needs the manifest is told
            return None

    def _manifest_text(self) -> bytes:
        path = self.path / MANIFEST
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise not_joined(self.path) from error
        except OSError as error:
            raise damaged(path) from error

    def frozen_adapter(self) -> bytes:
        """The adapter's public tensors, as little-endian float32, from the study's bundle. Raises StorageError."""
        path = self.path / FROZEN_ADAPTER
        try:
            return path.read_bytes()
        except OSError as error:
            raise damaged(path) from error

    def public_records(self, manifest: Manifest) -> PublicRecords | None:
        """The public records of which each step has some, from the study's bundle. Raises StudyError."""
        return PublicRecords.of(manifest.study, self.path / PUBLIC_RECORDS)

    def audit(self, manifest: Manifest) -> bytes | None:
        """What an audit found, from the study's bundle, if the study names one. Raises StudyError."""
        return named_audit(manifest.study, self.path / AUDIT)

    def forget(self) -> Path:
        """Take part in the study no more; the folder in which all that there was of it lies. Raises StorageError."""
        left = self.path.parents[1] / LEFT
        try:
            make_folder(left)
            places = (left / (f"{self.name}-{number}" if number else self.name) for number in range(1000))
            place = next(each for each in places if not each.exists())
            self.path.rename(place)
            fsync(left)
            fsync(self.path.parent)
        except OSError as error:
            raise damaged(self.path) from error
        return place


def not_joined(path: Path) -> StudyError:
    """The error of a site, or a study's folder, without a study."""
    return StudyError(
        f"{path} takes part in no study",
        why="a site's worker answers for the one that its operator agreed to",
        fix="join one: grandrounds client join DIR study.zip",
    )


def damaged(path: Path) -> StorageError:
    """The error of a file of the site's that cannot be used."""
    return StorageError(
        f"{path} is damaged or cannot be read",
        why="the worker speaks for the site with it",
        fix="put back the file; what the site spent is in its state, which must never be put back from a copy",
    )
