"""What happens while a study runs, as values: a display shows them, a test collects them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...common.study.manifest import Manifest
from ..rounds.training import ExchangeClosed, RoundOutcome


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A phase of the run began, such as "data", "model" or "training"; ``detail`` says on what."""

    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PhaseProgress:
    """``done`` of ``total`` steps of a phase are behind."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class PhaseEnded:
    """A phase ended after ``seconds``."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyReady:
    """The manifest is signed; ``epsilon`` is the whole schedule's, None without noise."""

    manifest: Manifest
    epsilon: float | None
    perplexity_before: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """Something that whoever runs this machine has to know before they trust what comes of it."""

    text: str


Event = Told | PhaseStarted | PhaseProgress | PhaseEnded | StudyReady | ExchangeClosed | RoundOutcome
Observer = Callable[[Event], None]


@contextmanager
def phase(observe: Observer, name: str, detail: str) -> Iterator[None]:
    """Tell ``observe`` when a phase begins and, unless it fails, how long it took."""
    started = time.monotonic()
    observe(PhaseStarted(name=name, detail=detail))
    yield
    observe(PhaseEnded(name=name, seconds=time.monotonic() - started))
