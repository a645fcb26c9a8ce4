"""What happens in a study, a line for each event: one process writes it, others follow."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from ...common.errors import GrandRoundsError
from ...common.system.files import size_of
from ..rounds.training import ExchangeClosed, RoundOutcome
from .progress import Event, PhaseEnded, PhaseProgress, PhaseStarted, StudyReady


@dataclass(frozen=True, kw_only=True)
class RunBegan:
    """A process took the study up, or went on with it."""

    process: int


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The run waits for ``sites`` to connect."""

    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run came to the study's end."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The run ended before the study's end, for a reason that is diagnosed as an error is."""

    what: str
    why: str
    fix: str

    @classmethod
    def by(cls, error: BaseException) -> "Stopped":
        """As ``error`` says it, if it is one that was written to be read."""
        if isinstance(error, GrandRoundsError):
            return cls(what=error.what, why=error.why, fix=error.fix)
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)  # by whoever runs this machine, through Flower
        return cls(
            what="the run was stopped" if stopped else f"the run met an error of the program ({type(error).__name__})",
            why="what was written is whole, up to the last round that was closed",
            fix="run the same command again; if nobody stopped it, flower/superexec.log says where it ended",
        )


Told = Event | RunBegan | Waiting | Finished | Stopped
_PLAIN: Final = (PhaseStarted, PhaseProgress, PhaseEnded, StudyReady, ExchangeClosed, RoundOutcome)
_KINDS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in _PLAIN} | {
    "began": RunBegan,
    "waiting": Waiting,
    "finished": Finished,
    "stopped": Stopped,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def line_of(event: Told, *, at: datetime | None = None) -> str:
    """An event as JSON on one line, with the second in which it was told if it is given, and no finer.

    >>> line_of(Waiting(sites=("north",)), at=datetime(2026, 2, 1, 9, 30, tzinfo=UTC))
    '{"event": "waiting", "at": "2026-02-01T09:30:00+00:00", "sites": ["north"]}'
    """
    fields = TypeAdapter(type(event)).dump_python(event, mode="json")
    time = {} if at is None else {"at": at.isoformat(timespec="seconds")}
    return json.dumps({"event": _NAMES[type(event)], **time, **fields}, ensure_ascii=False)


def event_of(line: str | bytes) -> Told | None:
    """The event of a line; None for a line that this version does not write."""
    try:
        fields = json.loads(line)
        fields.pop("at", None)
        event: Told = TypeAdapter(_KINDS[fields.pop("event")]).validate_python(fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return event


@dataclass(frozen=True)
class ProgressFile:
    """The file at ``path``. It is for people to look at: no claim rests on it."""

    path: Path
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def tell(self, event: Told) -> None:
        """Add an event. Where that fails the study goes on, whose ledger says what counts."""
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(line_of(event, at=self.now()) + "\n")

    @property
    def size_bytes(self) -> int:
        """Where what is told from now on will begin."""
        return size_of(self.path)

    def read(self, start: int = 0) -> tuple[Sequence[Told], int]:
        """The events from byte ``start`` on, and where the next begins; lines of another version are passed over."""
        if not self.path.exists():
            return [], start
        with self.path.open("rb") as file:
            file.seek(start)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        events = (event_of(line) for line in whole.splitlines())
        return [event for event in events if event is not None], start + len(whole)

    def last_run(self) -> int:
        """Where the last run began."""
        position = start = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    if isinstance(event_of(line), RunBegan):
                        start = position
                    position += len(line)
        return start
