"""What a site sees of its own training: figures of each step, in files of the worker's user that never leave."""

import errno
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from ...common.errors import StorageError, reason
from ...common.schema import Section
from ...common.system.files import make_private_folder
from ..training.step_figures import StepFigures

NEVER_LEAVES: Final = (
    "For this site alone: no noise protects these figures. Neither they nor a picture of them may leave the hospital, "
    "and whoever chooses settings by them spends privacy that no ledger counts."
)
STEPS: Final = "steps.jsonl"
_QUARTILES: Final = ("least", "quarter", "median", "three quarters", "greatest")
_log = logging.getLogger(__name__)


class SeenStep(Section):
    """A step as the file has it, a line each; shares of what was not there, as of no units, are None.

    ``step`` is that of the attempt, ``norms`` are the quartiles of the drawn units' gradients before clipping, with the
    least and the greatest; ``failed`` units count as zero.
    """

    time: str
    round: int
    attempt: int
    step: int
    units: int
    failed: int
    norms: tuple[float, float, float, float, float] | None
    clipped: float | None
    signal_to_noise: float | None
    records: int
    tokens: int
    padding: float | None
    batches: dict[str, int]
    seconds: float
    gradients_s: float
    sums_s: float
    noise_s: float
    memory_bytes: int
    gpu_bytes: int

    @property
    def tokens_a_second(self) -> float:
        """How many tokens of records, without padding."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, figures: StepFigures, *, round_: int, attempt: int, step: int, gpu_bytes: int) -> Self:
        """A step's figures, as they are at this moment."""
        sound, computed = figures.sound, figures.computed
        kilo = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            round=round_,
            attempt=attempt,
            step=step,
            units=len(figures.norms),
            failed=len(figures.norms) - len(sound),
            norms=tuple(np.quantile(sound, [0, 0.25, 0.5, 0.75, 1]).tolist()) if len(sound) else None,
            clipped=figures.shortened,
            signal_to_noise=figures.signal / figures.noise if figures.noise else None,
            records=figures.records,
            tokens=figures.tokens,
            padding=1 - figures.tokens / computed if computed else None,
            batches=dict(figures.batches),
            seconds=figures.seconds,
            gradients_s=figures.gradients_s,
            sums_s=figures.sums_s,
            noise_s=figures.noise_s,
            memory_bytes=kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            gpu_bytes=gpu_bytes,
        )

    def scalars(self) -> Iterator[tuple[str, float]]:
        """What TensorBoard draws, by its names."""
        if self.norms is not None:
            yield from zip((f"norm before clipping/{name}" for name in _QUARTILES), self.norms, strict=True)
        shares = {"clipped share": self.clipped, "signal to noise": self.signal_to_noise, "padding": self.padding}
        yield from ((name, value) for name, value in shares.items() if value is not None)
        yield from {"units/drawn": self.units, "units/counted as zero": self.failed}.items()
        yield from {"memory/GiB": self.memory_bytes / 2**30, "memory/GPU GiB": self.gpu_bytes / 2**30}.items()
        yield "speed/tokens a second", self.tokens_a_second
        yield "speed/seconds", self.seconds
        yield "speed/seconds of gradients", self.gradients_s
        yield "speed/seconds of clip, integers and sum", self.sums_s
        yield "speed/seconds of waiting for noise", self.noise_s


class TrainingView:
    """Writes each step's figures to ``folder``, as JSON lines and, where tensorboardX is installed, as event files.

    Only the worker's user can read them. Nothing here raises or waits for anybody: where a disk is full or a folder
    cannot be written, one line of the log says so, and the view is over while training goes on.
    """

    def __init__(
        self, folder: Path, *, at: Callable[[], tuple[int, int]], gpu_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        """``at`` gives the round and the attempt that a step belongs to, ``gpu_bytes`` the most of a GPU's memory."""
        self._at = at
        self._gpu_bytes = gpu_bytes
        self._last, self._step = (0, 0), 0
        self._lines: FileIO | None = None
        self._events: _EventFile | None = None
        try:
            make_private_folder(folder)
            self._lines, self._number = _opened(folder / STEPS)
            self._events = _EventFile.opened(folder)
        except Exception as error:  # of tensorboardX, too
            self._stop(error)

    def __call__(self, figures: StepFigures) -> None:
        """Write a step's figures."""
        if self._lines is None:
            return
        try:
            round_, attempt = self._at()
            self._step = self._step + 1 if (round_, attempt) == self._last else 1
            self._last = (round_, attempt)
            seen = SeenStep.of(figures, round_=round_, attempt=attempt, step=self._step, gpu_bytes=self._gpu_bytes())
            _write(self._lines, seen.model_dump_json())
            self._number += 1
            if self._events is not None:
                self._events.write(seen, self._number)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._lines = self._events = None
        cause = error.__cause__ if isinstance(error, StorageError) else error
        said = reason(cause) if isinstance(cause, OSError) else type(error).__name__
        _log.warning("figures of steps are no longer written (%s); training goes on without them", said)


class _EventFile:
    """An event file of TensorBoard.

    Not by tensorboardX's SummaryWriter: the thread that writes for it ends on a full disk, and whoever gives it the
    next events then waits for ever.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def opened(cls, folder: Path) -> "_EventFile | None":
        """One more in ``folder``; None where tensorboardX is not installed, which the log says. Raises OSError."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.summary import text
        except ImportError:
            _log.info("TensorBoard's event files are not written: install grandrounds[tensorboard] for them")
            return None
        writer = EventsWriter(str(folder / "events"))
        for path in folder.glob("events*"):
            path.chmod(0o600)
        writer.write_event(Event(wall_time=datetime.now(UTC).timestamp(), summary=text("never to leave", NEVER_LEAVES)))
        writer.flush()
        return cls(writer)

    def write(self, seen: SeenStep, number: int) -> None:
        """Add a step, which is the ``number``-th that was seen. Raises OSError."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in seen.scalars()]
        now = datetime.now(UTC).timestamp()
        self._writer.write_event(Event(wall_time=now, step=number, summary=Summary(value=values)))
        self._writer.flush()


def read_steps(path: Path, start: int = 0) -> tuple[list[SeenStep], int]:
    """The steps whose lines are whole from byte ``start`` on, and the byte behind them. Raises OSError."""
    with path.open("rb") as file:
        file.seek(start)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [seen for line in whole.splitlines() if (seen := _parsed(line))], start + len(whole) + len(newline)


def _parsed(line: bytes) -> SeenStep | None:
    """None of the first line, which says whom the file is for, and of one that was cut short."""
    try:
        return SeenStep.model_validate_json(line)
    except ValueError:
        return None


def _opened(path: Path) -> tuple[FileIO, int]:
    """The file to append to, and how many steps it has. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    file = FileIO(descriptor, "r+b")
    held = file.read() or b""
    if not held:
        _write(file, json.dumps({"never to leave": NEVER_LEAVES}))
    elif not held.endswith(b"\n"):
        _write(file, "")  # a line was cut short when the machine stopped
    return file, max(held.count(b"\n") - 1, 0)


def _write(file: FileIO, line: str) -> None:
    """Append a line at once. Raises OSError, also where a disk takes a part of it."""
    whole = line.encode() + b"\n"
    if file.write(whole) != len(whole):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
