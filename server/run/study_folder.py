"""A study's folder: manifest, ledger, checkpoints, adapter and report, each written whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from safetensors import SafetensorError

from ...common.audit.named import named_audit
from ...common.crypto.identity import sha256
from ...common.errors import StorageError
from ...common.model.base_folder import published_name
from ...common.model.language_model import LanguageModel
from ...common.study.artefacts import (
    ADAPTER,
    ATTACKS,
    AUDIT,
    FIRST_ADAPTER,
    LEDGER,
    MANIFEST,
    PAGE,
    PREPARED,
    PUBLIC,
    REPORT,
    SUMS,
    sum_path,
)
from ...common.study.first_adapter import BY_HASH, FirstAdapter
from ...common.study.manifest import Manifest
from ...common.study.model_section import ModelSection
from ...common.study.public_records import PublicRecords
from ...common.study.step import DueStep, LastStep, Trained, step_into, sum_size
from ...common.study.study import Study
from ...common.system.content import Content, Stored
from ...common.system.files import fsync, make_folder, rename_folder, write_atomically
from ..report.page import render_html, render_model_card
from ..report.report import render_json
from ..rounds.checkpoint import Checkpoint

# A study's sums are kept where they are no larger together.
LARGEST_SUMS_BYTES: Final = 1 << 30
_CHECKPOINTS: Final = "checkpoints"
# What becomes one of these files, or the adapter's folder, once it is whole.
_UNFINISHED: Final = (
    *(f".{name}-*" for name in (MANIFEST, REPORT, PAGE, ADAPTER, ATTACKS, AUDIT)),
    f"{_CHECKPOINTS}/.round-*",
    f"{SUMS}/.*",
    "server/.private.json-*",
)


@dataclass(frozen=True)
class StudyFolder:
    """What a study leaves below ``path``.

    For everybody: ``study.json``, ``ledger/``, ``sums/``, ``report.json``, ``report.html``, ``adapter/``. To go on
    with: ``checkpoints/``, and ``server/`` and ``sites/``, which hold secrets and are nobody else's.
    """

    path: Path

    @classmethod
    def create(cls, path: Path) -> Self:
        """Claim a new or empty folder. Raises StorageError for one with content, or that cannot be written."""
        try:
            make_folder(path)
            taken = any(path.iterdir())
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be used: {error.strerror}",
                why="the adapter and its report are written there",
                fix="choose another folder with --output",
            ) from error
        if taken:
            raise StorageError(
                f"{path} is not empty",
                why="results of another study would be mixed with this one's or lost",
                fix="choose another folder with --output, move that one away, or go on with its study with --resume",
            )
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a study that was begun. Raises StorageError."""
        if not (path / MANIFEST).is_file():
            raise StorageError(
                f"{path} holds no study that was begun",
                why="there is nothing to go on with",
                fix="give the study's folder with --output, or start a study without --resume",
            )
        return cls(path)

    def save_manifest(self, manifest: Manifest) -> None:
        """Write the study's manifest in its canonical form."""
        write_atomically(self.path / MANIFEST, manifest.canonical)

    def manifest(self) -> Manifest:
        """The study's manifest. Raises StorageError if it is damaged, StudyError if it is another version's."""
        try:
            return Manifest.parse((self.path / MANIFEST).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(self.path / MANIFEST) from error

    def tidy(self) -> None:
        """Remove what a process that was killed had not finished writing. Raises StorageError.

        Only for the process that holds the sites' locks: no other process writes here then.
        """
        try:
            for path in (path for pattern in _UNFINISHED for path in self.path.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def site_state(self, site: str) -> Path:
        """Where a simulated site keeps what a real one keeps at its hospital."""
        return self.path / "sites" / site

    def append_entry(self, line: bytes) -> None:
        """Add an entry to the ledger, on disk when this returns. Raises StorageError, and the ledger is as it was."""
        path = self.path / LEDGER
        try:
            make_folder(path.parent)
            with path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(line + b"\n") <= len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
            if before == 0:
                fsync(path.parent)
        except OSError as error:
            raise unwritable(path, error) from error

    def ledger_lines(self) -> list[bytes]:
        """The ledger's entries. One that was cut short by a crash is dropped: nobody was told of it."""
        path = self.path / LEDGER
        try:
            if not path.exists():
                return []
            with path.open("r+b") as file:
                whole, _, torn = file.read().rpartition(b"\n")
                if torn:
                    file.truncate(len(whole) + 1 if whole else 0)
        except OSError as error:
            raise damaged(path) from error
        return whole.split(b"\n") if whole else []

    def take_step(self, due: DueStep) -> Trained:
        """As ``step``, into files that have no name. Raises EnvelopeError and StorageError."""
        folder = self.path / _CHECKPOINTS
        try:
            make_folder(folder)
            return step_into(due, lambda: tempfile.TemporaryFile(dir=folder))
        except OSError as error:
            raise unwritable(folder, error) from error

    def save_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the state after a round; returns what was written."""
        return checkpoint.save(self.path / _CHECKPOINTS)

    def save_sum(self, manifest: Manifest, round_: int, last_step: LastStep) -> None:
        """Write the sum of a round, or the adapter before the first, where all of a study's have room together."""
        if manifest.study.training.rounds * sum_size(manifest) > LARGEST_SUMS_BYTES:
            return
        if round_ == 0:
            write_atomically(self.path / FIRST_ADAPTER, last_step.after.numbers)
        else:
            write_atomically(self.path / sum_path(round_), last_step.total)

    def save_first_adapter(self, first: FirstAdapter | None) -> None:
        """Write the first adapter as it was made, if it was. Raises StorageError."""
        if first is not None:
            write_atomically(self.path / PREPARED, first.data)

    def first_adapter(self, manifest: Manifest) -> FirstAdapter | None:
        """The first adapter as it was made, if it was. Raises StudyError where it is not the manifest's."""
        named = manifest.study.model.first_adapter
        if named is None:
            return None
        return FirstAdapter.read(self.path / PREPARED, expected=named.removeprefix(BY_HASH))

    def save_public_records(self, public: PublicRecords | None) -> None:
        """Write the public records that enter each step, if any do. Raises StorageError."""
        if public is not None:
            write_atomically(self.path / PUBLIC, public.data)

    def public_records(self, study: Study) -> PublicRecords | None:
        """The public records that enter each step of a study that is fixed, if any do. Raises StudyError."""
        return PublicRecords.of(study, self.path / PUBLIC)

    def save_audit(self, audit: bytes | None) -> None:
        """Write an audit, if there is one: the report will state it. Raises StorageError."""
        if audit is not None:
            write_atomically(self.path / AUDIT, audit)

    @property
    def has_audit(self) -> bool:
        """Whether an audit lies in the folder, of whatever study it is."""
        return (self.path / AUDIT).exists()

    def named_audit(self, study: Study) -> bytes | None:
        """The audit that a study that is fixed names, if it does. Raises StudyError."""
        return named_audit(study, self.path / AUDIT)

    def checkpoint(self, manifest: Manifest) -> Checkpoint | None:
        """The last that was saved, if one was. Raises StorageError if it is damaged."""
        return Checkpoint.newest(self.path / _CHECKPOINTS, manifest.study_id)

    def save_results(self, report: dict[str, Any], model: LanguageModel, *, described: ModelSection) -> list[str]:
        """Write the report and the adapter that ``model`` holds, with a card that carries the claim.

        ``described`` is what the study says of the model. Returns the path of every file that a study leaves. May be
        called again after a crash.
        """
        self._save_adapter(model, described, render_model_card(report))
        write_atomically(self.path / PAGE, render_html(report).encode())
        write_atomically(self.path / REPORT, render_json(report))
        files = [self.path / name for name in (MANIFEST, REPORT, PAGE)]
        files += (path for path in (self.path / ADAPTER).rglob("*") if path.is_file())
        return [path.relative_to(self.path).as_posix() for path in files]

    def save_attacks(self, data: bytes) -> None:
        """Keep what attacks on the trained adapter found, for the report that is written next."""
        write_atomically(self.path / ATTACKS, data)

    def contents(self, names: Iterable[str]) -> dict[str, Content]:
        """What is in these files, where it lies. Raises StorageError."""
        try:
            return {name: Stored.open(self.path / name) for name in names}
        except OSError as error:
            raise damaged(self.path) from error

    def holds(self, files: Mapping[str, str]) -> bool:
        """Whether each of the files is there with this SHA-256. Raises StorageError."""
        try:
            return all(
                (self.path / name).is_file() and sha256(Stored.open(self.path / name)) == expected
                for name, expected in files.items()
            )
        except OSError as error:
            raise damaged(self.path) from error

    def _save_adapter(self, model: LanguageModel, described: ModelSection, card: str) -> None:
        adapter = self.path / ADAPTER
        try:
            if adapter.exists():
                shutil.rmtree(adapter)
            with tempfile.TemporaryDirectory(dir=self.path, prefix=".adapter-") as folder:
                whole = Path(folder) / ADAPTER
                model.export(whole, lora=described.lora, base_model=published_name(described.name))
                write_atomically(whole / "README.md", card.encode())
                rename_folder(whole, adapter)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{adapter} cannot be written: {getattr(error, 'strerror', None) or error}",
                why="it is the study's result",
                fix="free space; the checkpoints hold the trained adapter",
            ) from error


def unwritable(path: Path, error: OSError) -> StorageError:
    """That what a study does cannot be put on record."""
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        why="what a study does is on record before it is done",
        fix="free space or make it writable, then go on with --resume; what was written before is whole",
    )


def damaged(path: Path) -> StorageError:
    """That what a study was begun as cannot be read back."""
    return StorageError(
        f"{path} is damaged or cannot be read",
        why="the study can go on only as what it was begun as",
        fix="put back the file, or start a study of its own",
    )
