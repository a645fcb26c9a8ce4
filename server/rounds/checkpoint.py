"""Checkpoints: what a round left, and what it came of, written whole or not at all."""

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import StorageError
from ...common.ledger.chain import EMPTY_LEDGER_HEAD
from ...common.model.perplexity import NOT_EVALUATED, Perplexity
from ...common.study.step import LastStep, Trained
from ...common.system.files import write_atomically

# The newest, and one before it in case the newest is found damaged.
KEPT = 2
_NAME = re.compile(r"^round-(\d{6})\.npz$")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after a committed round, or before the first.

    ``study`` is its id; ``last_step`` has the adapter and its optimiser, and what a site is sent that lacks them;
    ``perplexities`` [round + 1, 1 + bands] are those before the first
    round and after each, whole and by position, NaN where none was measured; ``ledger_head`` is the head of the ledger
    of ``ledger_length`` entries with which it was saved.
    """

    study: str
    round: int
    attempts: int
    last_step: LastStep
    perplexities: NDArray[np.float64]
    ledger_length: int
    ledger_head: str

    @classmethod
    def initial(cls, *, study: str, adapter: NDArray[np.float32], perplexity: Perplexity) -> "Checkpoint":
        """The state before the first round and the first attempt."""
        return cls(
            study=study,
            round=0,
            attempts=0,
            last_step=LastStep(after=Trained(adapter=adapter)),
            perplexities=perplexity.values[None],
            ledger_length=0,
            ledger_head=EMPTY_LEDGER_HEAD,
        )

    @property
    def adapter(self) -> NDArray[np.float32]:
        """The adapter, float32 [d]."""
        return self.last_step.after.adapter

    @property
    def last_evaluated(self) -> Perplexity:
        """Of the last adapter that was evaluated."""
        evaluated = self.perplexities[~np.isnan(self.perplexities[:, 0])]
        return Perplexity.of_values(evaluated[-1])

    def save(self, folder: Path) -> None:
        """Write into ``folder`` and drop older ones; raises StorageError."""
        counters = np.array([self.round, self.attempts, self.ledger_length])
        arrays: dict[str, NDArray[Any]] = {"counters": counters, "study": np.array(self.study)}
        arrays |= {"ledger_head": np.array(self.ledger_head), "perplexities": self.perplexities}
        arrays |= _arrays(self.last_step)
        arrays |= {"sha256": np.array(_digest(arrays))}
        path = folder / f"round-{self.round:06d}.npz"
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        try:
            for path in _saved(folder)[:-KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"older checkpoints in {folder} cannot be removed: {error.strerror}",
                why="only the newest are needed, and the others would fill the disk",
                fix="make the folder writable; the newest checkpoint is whole",
            ) from error

    @classmethod
    def newest(cls, folder: Path, study: str) -> "Checkpoint | None":
        """The last that was saved, if one was; raises StorageError if it is damaged or another study's."""
        saved = _saved(folder) if folder.exists() else []
        return cls.load(saved[-1], study) if saved else None

    @classmethod
    def load(cls, path: Path, study: str) -> "Checkpoint":
        """Read a checkpoint of ``study``; raises StorageError if it is damaged or another study's."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.zip.infolist()):
                    raise ValueError("compressed, as no checkpoint is: it could unpack to any size")
                stored = {name: archive[name] for name in archive.files}
            if str(stored.pop("sha256")) != _digest(stored):
                raise ValueError("not what was saved")
            round_, attempts, ledger_length = (int(counter) for counter in stored.pop("counters"))
            owner, ledger_head = str(stored.pop("study")), str(stored.pop("ledger_head"))
            perplexities, last_step = stored.pop("perplexities"), _last_step(stored)
            if perplexities.shape != (round_ + 1, len(NOT_EVALUATED)):
                raise ValueError("not the perplexities of so many rounds")
        except Exception as error:  # a damaged archive raises errors of every layer that reads it
            raise StorageError(
                f"{path} is no whole checkpoint",
                why="training would continue from numbers that nobody released",
                fix="put back a whole copy; the checkpoint before it serves if the ledger has not closed this round",
            ) from error
        if owner != study:
            raise StorageError(
                f"{path} belongs to study {owner[:16]}…, not to {study[:16]}…",
                why="the schedule and its claim are another study's",
                fix="choose the folder of this study",
            )
        return cls(
            study=owner,
            round=round_,
            attempts=attempts,
            last_step=last_step,
            perplexities=perplexities,
            ledger_length=ledger_length,
            ledger_head=ledger_head,
        )


def _arrays(last_step: LastStep) -> dict[str, NDArray[Any]]:
    states = {"after": last_step.after} | ({} if last_step.before is None else {"before": last_step.before})
    arrays: dict[str, NDArray[Any]] = {"total": np.frombuffer(last_step.total, np.uint8)}
    for name, state in states.items():
        arrays |= {f"{name}.adapter": state.adapter, f"{name}.optimizer": np.frombuffer(state.optimizer, np.uint8)}
    return arrays


def _last_step(stored: dict[str, NDArray[Any]]) -> LastStep:
    def state(name: str) -> Trained:
        return Trained(adapter=stored[f"{name}.adapter"], optimizer=stored[f"{name}.optimizer"].tobytes())

    before = state("before") if "before.adapter" in stored else None
    return LastStep(after=state("after"), before=before, total=stored["total"].tobytes())


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and bytes: an archive's own sums do not cover which entries it has."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name))
