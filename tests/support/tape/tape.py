"""A tape: whatever a run draws, read from a seed by who draws it and what for; and what the run does besides."""

import hashlib
import logging
import os
import random
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grandrounds.common.crypto.csprng import Stream, derived_key, fresh_key

PACKAGE = "grandrounds."
# Where a site answers: each line that runs there is kept, so that a branch that depends on records shows.
WATCHED = ("client.worker.", "client.state.", "common.protocol.", "common.secagg.")


@dataclass(kw_only=True)
class Tape:
    """Randomness from ``seed``, laid beneath the package, which knows nothing of it.

    It takes the place of the operating system's, under ``secrets``, ``random.SystemRandom``, ``os.urandom`` and numpy's
    unseeded generators alike. What is read follows from the reader, the purpose and how often both were there before:
    one that draws more or less, or in another thread, moves nobody else's place. The coins of a sample are
    laid out by unit: at ``gap``, a place among so many units of the site that lacks one, its coin is passed over.
    For that each call of a fresh ``Stream.words`` has words of its own: independent and uniform, as those are that they
    stand for.
    """

    seed: bytes
    gap: tuple[str, int, int] | None = None
    # Who is at work: a site, or the server.
    at: str = ""
    # How many bytes were read, by purpose, in order.
    reads: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    # What each site's samples were given: for each sample its calls, each uint64 [words].
    coins: dict[str, list[list[NDArray[np.uint64]]]] = field(default_factory=lambda: defaultdict(list))
    lines: list[tuple[str, int]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    # Generators that are not on the tape and were used.
    beside: list[str] = field(default_factory=list)

    def read(self, size: int) -> bytes:
        """What the operating system would have been asked for."""
        purpose = f"{self.at}: {_purpose()}"
        place = f"{purpose}/{len(self.reads[purpose])}"
        self.reads[purpose].append(size)
        return hashlib.shake_256(self.seed + place.encode()).digest(size)

    @contextmanager
    def laid(self) -> Iterator[None]:
        """What runs inside draws from the tape."""
        before = _states()
        log, keep = logging.getLogger(PACKAGE.rstrip(".")), _Keep(self.logged)
        level, traced = log.level, sys.gettrace()
        with pytest.MonkeyPatch.context() as beneath:
            beneath.setattr(os, "urandom", self.read)
            beneath.setattr(random, "_urandom", self.read)
            beneath.setattr(Stream, "fresh", lambda: _Coins(fresh_key(), self))
            log.addHandler(keep)
            log.setLevel(logging.DEBUG)
            sys.settrace(self._called)
            try:
                yield
            finally:
                sys.settrace(traced)
                log.removeHandler(keep)
                log.setLevel(level)
        self.beside = [name for name, state in _states().items() if state != before[name]]

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What runs inside is no protocol, and its lines may depend on records."""
        traced = sys.gettrace()
        sys.settrace(None)
        try:
            yield
        finally:
            sys.settrace(traced)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_globals.get("__name__") or ""
        return self._line if name.startswith(PACKAGE) and name[len(PACKAGE) :].startswith(WATCHED) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.append((frame.f_globals["__name__"], frame.f_lineno))
        return self._line


class _Coins(Stream):
    """A fresh stream whose calls are laid out so that those of two neighbours are the same, but for one unit's."""

    def __init__(self, key: bytes, tape: Tape) -> None:
        super().__init__(key)
        self._key = key
        self._given: list[NDArray[np.uint64]] = []
        tape.coins[tape.at].append(self._given)
        self._gap = tape.gap[1:] if tape.gap is not None and tape.gap[0] == tape.at else (0, -1)

    def words(self, count: int) -> NDArray[np.uint64]:
        place, units = self._gap
        is_short = not self._given and count == units
        words = Stream(derived_key(self._key, b"%d" % len(self._given))).words(count + is_short)
        self._given.append(np.delete(words, place) if is_short else words)
        return self._given[-1]


class _Keep(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


def _purpose() -> str:
    """The function of the package that draws, of those above its one door to randomness; else the thread's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name.startswith(PACKAGE) and not name.endswith(".csprng"):
            return f"{name}.{frame.f_code.co_qualname.split('.<locals>')[0]}"
        frame = frame.f_back
    return threading.current_thread().name


def _states() -> dict[str, bytes]:
    """Those of all generators that a process has from its start."""
    return {
        "random": repr(random.getstate()).encode(),
        "numpy": repr(np.random.get_state()).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
