"""Checkpoints: what a round left, and what it came of, written whole or not at all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...common.crypto.identity import Hex32, canonical_json, sha256
from ...common.errors import StorageError
from ...common.ledger.chain import EMPTY_LEDGER_HEAD
from ...common.model.adapter import Vector
from ...common.model.perplexity import NOT_EVALUATED, Perplexity, RecordLosses
from ...common.schema import Section
from ...common.study.step import LastStep, Trained
from ...common.system.content import Content, Joined, Stored
from ...common.system.files import write_atomically

# The newest, and one before it in case the newest is found damaged.
KEPT = 2
_NAME = re.compile(r"^round-(\d{6})\.checkpoint$")
_LONGEST_HEADER: Final = 1 << 12
_HASH_BYTES: Final = 64


class _Part(Section):
    size_bytes: int = Field(ge=0, le=2**40)
    sha256: Hex32


class _Header(Section):
    """The first line of a checkpoint, after its own SHA-256; its parts follow, in the order of their names."""

    study: str
    round: int = Field(ge=0)
    attempts: int = Field(ge=0)
    ledger_length: int = Field(ge=0)
    ledger_head: str
    parts: dict[str, _Part]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after a committed round, or before the first.

    ``study`` is its id; ``last_step`` has the adapter and its optimiser, and what a site is sent that lacks them;
    ``perplexities`` [round + 1, 1 + bands] are those before the first
    round and after each, whole and by position, NaN where none was measured; ``evaluated`` [3, records] are the tokens
    that are predicted of each evaluation record, and the nats lost on it before the first round and by the last adapter
    that was evaluated; ``ledger_head`` is the head of the ledger of ``ledger_length`` entries with which it was saved.
    """

    study: str
    round: int
    attempts: int
    last_step: LastStep
    perplexities: NDArray[np.float64]
    evaluated: NDArray[np.float64]
    ledger_length: int
    ledger_head: str

    @classmethod
    def initial(cls, *, study: str, adapter: Vector, losses: RecordLosses) -> "Checkpoint":
        """The state before the first round and the first attempt."""
        return cls(
            study=study,
            round=0,
            attempts=0,
            last_step=LastStep(after=Trained(adapter=adapter)),
            perplexities=losses.perplexity.values[None],
            evaluated=losses.whole[[0, 1, 1]],
            ledger_length=0,
            ledger_head=EMPTY_LEDGER_HEAD,
        )

    @property
    def adapter(self) -> Vector:
        """The adapter, float32 [d], in memory."""
        return self.last_step.after.vector

    def evaluated_by(self, losses: RecordLosses) -> NDArray[np.float64]:
        """``evaluated``, once another adapter was."""
        return np.vstack([self.evaluated[:2], losses.whole[1]])

    @property
    def last_evaluated(self) -> Perplexity:
        """Of the last adapter that was evaluated."""
        evaluated = self.perplexities[~np.isnan(self.perplexities[:, 0])]
        return Perplexity.of_values(evaluated[-1])

    def save(self, folder: Path) -> "Checkpoint":
        """Write into ``folder`` and drop older ones; returns what was written, where it lies. Raises StorageError."""
        header = _Header(
            study=self.study,
            round=self.round,
            attempts=self.attempts,
            ledger_length=self.ledger_length,
            ledger_head=self.ledger_head,
            parts=self._described,
        )
        line = canonical_json(header.model_dump()) + b"\n"
        parts = [part for _, (part, _) in sorted(self._parts.items())]
        path = folder / f"round-{self.round:06d}.checkpoint"
        write_atomically(path, Joined([sha256(line).encode(), line, *parts]))
        try:
            for older in _saved(folder)[:-KEPT]:
                older.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"older checkpoints in {folder} cannot be removed: {error.strerror}",
                why="only the newest are needed, and the others would fill the disk",
                fix="make the folder writable; the newest checkpoint is whole",
            ) from error
        return _read(path)[0]

    @classmethod
    def newest(cls, folder: Path, study: str) -> "Checkpoint | None":
        """The last that was saved, if one was; raises StorageError if it is damaged or another study's."""
        saved = _saved(folder) if folder.exists() else []
        return cls.load(saved[-1], study) if saved else None

    @classmethod
    def load(cls, path: Path, study: str) -> "Checkpoint":
        """A checkpoint of ``study``, of which what is large is read when it is used.

        Raises StorageError if it is damaged or another study's.
        """
        checkpoint, parts = _read(path)
        if checkpoint._described != parts:
            raise _damaged(path)
        if checkpoint.study != study:
            raise StorageError(
                f"{path} belongs to study {checkpoint.study[:16]}…, not to {study[:16]}…",
                why="the schedule and its claim are another study's",
                fix="choose the folder of this study",
            )
        return checkpoint

    @property
    def _parts(self) -> dict[str, tuple[Content, str]]:
        """What has no room in the header, by name, with its SHA-256."""
        step = self.last_step
        figures = {name: getattr(self, name).astype("<f8").tobytes() for name in ("evaluated", "perplexities")}
        states = {"after": step.after} | ({} if step.before is None else {"before": step.before})
        adapters = {f"{name}.adapter": (state.numbers, state.adapter_sha256) for name, state in states.items()}
        optimizers = {f"{name}.optimizer": (state.optimizer, state.optimizer_sha256) for name, state in states.items()}
        others = {name: (data, sha256(data)) for name, data in figures.items()}
        return adapters | optimizers | others | {"total": (step.total, step.total_sha256)}

    @property
    def _described(self) -> dict[str, _Part]:
        return {name: _Part(size_bytes=len(part), sha256=digest) for name, (part, digest) in self._parts.items()}


def _read(path: Path) -> tuple[Checkpoint, dict[str, _Part]]:
    """What is in a file, and its parts as its header has them; nobody has compared the two. Raises StorageError."""
    try:
        stored = Stored.open(path)
        line, newline, _ = stored[_HASH_BYTES:_LONGEST_HEADER].partition(b"\n")
        if stored[:_HASH_BYTES] != sha256(line + newline).encode():
            raise ValueError("not the header that was saved")
        header = _Header.model_validate_json(line)
        parts, start = {}, _HASH_BYTES + len(line) + len(newline)
        for name, part in sorted(header.parts.items()):
            parts[name], start = stored.part(start, start + part.size_bytes), start + part.size_bytes
        if start != len(stored):
            raise ValueError("longer or shorter than what was saved")
        perplexities = np.frombuffer(parts["perplexities"][:], dtype="<f8").reshape(header.round + 1, -1)
        if perplexities.shape[1] != len(NOT_EVALUATED):
            raise ValueError("not the perplexities of each round")
        evaluated = np.frombuffer(parts["evaluated"][:], dtype="<f8").reshape(3, -1)
        fields = header.model_dump(exclude={"parts"})
        step = _last_step(parts)
        return Checkpoint(**fields, last_step=step, perplexities=perplexities, evaluated=evaluated), header.parts
    except (OSError, ValueError, KeyError, StorageError) as error:
        raise _damaged(path) from error


def _last_step(parts: Mapping[str, Stored]) -> LastStep:
    def state(name: str) -> Trained:
        return Trained(adapter=parts[f"{name}.adapter"], optimizer=parts[f"{name}.optimizer"])

    before = state("before") if "before.adapter" in parts else None
    return LastStep(after=state("after"), before=before, total=parts["total"])


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} is no whole checkpoint",
        why="training would continue from numbers that nobody released",
        fix="put back a whole copy; the checkpoint before it serves if the ledger has not closed this round",
    )


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name))
