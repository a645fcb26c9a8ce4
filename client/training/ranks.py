"""Ranks: the processes of one site that compute a step together, each with the model on a device of its own."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ModelError

T = TypeVar("T")

# How long a rank waits for another, which may be in a slow batch; one that has ended is noticed at once.
PATIENCE_S: Final = 1800.0
_log = logging.getLogger(__name__)


class RankLost(SystemExit):
    """Another rank ended, failed or does not answer, and this process ends: what it has is not the sum.

    No Exception, since whatever goes on after one would go on without that rank's patients. No record can bring it
    about: what reaches a rank was judged before. Whatever runs the worker starts it again, with all of its ranks.
    """


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a rank says of an error at its start, in the words of a GrandRoundsError, or of any by its type alone."""

    kind: str
    diagnosis: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class _Batch:
    """What a rank says before a batch that it cannot compute alone."""


class Ranks:
    """The ranks of a site as one of them sees them; rank 0 is the worker itself, which the others are children of.

    What they say to each other goes through pipes that the children inherited, which no other process can open: the
    adapter, records' tokens, sums. Each ``everyones`` is said by all ranks, in the same order. Of a base that is
    sharded, no rank computes a ``batch`` alone: it says so before, and who waits for the others in ``everyones`` takes
    part by ``accompany``, a batch of padding.
    """

    # What the devices are, and how the base model lies on them, in words for the site alone.
    told: Sequence[str] = ()

    def __init__(self, links: Sequence[Connection] = (), *, number: int = 0, devices: Sequence[str] = ("",)) -> None:
        """``links`` lead to all others from rank 0, and from each of these to rank 0."""
        self._links = links
        self.number = number
        self.devices = tuple(devices)
        self.is_sharded = False
        self.accompany: Callable[[], object] = lambda: None
        self._accompanies = False

    @cached_property
    def folder(self) -> Path:
        """This user's own, for as long as there are ranks."""
        self._folder = TemporaryDirectory(prefix="grandrounds-")
        return Path(self._folder.name)

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return len(self.devices)

    def everyones(self, said: T) -> list[T]:
        """What every rank says here, in their order. Raises RankLost, and at a start ModelError."""
        while True:
            heard = self._exchanged(said)
            if not any(isinstance(one, _Batch) for one in heard):
                return heard
            self._accompanies = True
            self.accompany()
            self._accompanies = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """A pass through a base that is sharded, forward and backward, and of all ranks. Raises RankLost.

        One that fails half-way ends everything: the others wait for blocks that nobody gathers any more.
        """
        if not self._accompanies:
            self._exchanged(_Batch())
        try:
            yield
        except Exception as error:
            self.fail(type(error).__name__)

    def ask(self, orders: Sequence[Any]) -> None:
        """From rank 0, one order for each other rank, which ``await_order`` gives there. Raises RankLost."""
        for number, order in enumerate(orders):
            self._send(number, order)

    def await_order(self) -> Any:
        """What rank 0 asks for next. Raises EOFError once rank 0 is gone."""
        return self._links[0].recv()

    def add_up(self, total: NDArray[np.signedinteger], said: T) -> list[T]:
        """Make rank 0's ``total`` [d] the sum of all ranks'; as ``everyones``, what else is said."""
        heard = self.everyones(said)
        if self.number:
            self._links[0].send_bytes(total.data.cast("B"))
            return heard
        theirs = np.empty_like(total)
        for number, link in enumerate(self._links):
            try:
                link.recv_bytes_into(theirs.data.cast("B"))
            except (EOFError, OSError):
                self._lose(self._at(number), "has ended")
            total += theirs
        return heard

    def fail(self, kind: str) -> NoReturn:
        """End all ranks over an error of this one's own, known by its ``kind`` alone. Raises RankLost."""
        if self.number:
            self._send(0, Failed(kind=kind))
        self._lose(self.devices[self.number], f"failed ({kind})")

    def _exchanged(self, said: Any) -> list[Any]:
        if self.number:
            self._send(0, said)
            return list(self._received()[0])
        heard = [said, *self._received()]
        for number in range(len(self._links)):
            self._send(number, heard)
        return heard

    def _send(self, number: int, said: Any) -> None:
        try:
            self._links[number].send(said)
        except OSError:
            self._lose(self._at(number), "has ended")

    def _received(self) -> list[Any]:
        """One message over each link, whichever is there first. Raises RankLost, and at a start ModelError."""
        received: dict[int, Any] = {}
        while len(received) < len(self._links):
            left = {link: number for number, link in enumerate(self._links) if number not in received}
            ready = wait(list(left), PATIENCE_S)
            if not ready:
                self._lose(self._at(min(left.values())), f"has not answered for {PATIENCE_S / 60:.0f} minutes")
            for link in ready:
                assert isinstance(link, Connection)  # noqa: S101 (the type checker knows of more kinds)
                try:
                    said = received[left[link]] = link.recv()
                except (EOFError, OSError):
                    self._lose(self._at(left[link]), "has ended")
                if isinstance(said, Failed):
                    self._refuse(self._at(left[link]), said)
        return [received[number] for number in range(len(self._links))]

    def _at(self, link: int) -> str:
        """The device at the other end of a link."""
        return self.devices[0 if self.number else link + 1]

    def _refuse(self, device: str, failed: Failed) -> NoReturn:
        if failed.diagnosis is None:
            self._lose(device, f"failed ({failed.kind})")
        what, why, fix = failed.diagnosis
        raise ModelError(f"{device}: {what}", why=why, fix=fix)

    def _lose(self, device: str, how: str) -> NoReturn:
        what = f"the process that computes on {device} {how}"
        _log.error("%s: all processes of the worker end", what)
        raise RankLost(f"{what}, and no step is computed without it. Start the worker again, or name other devices")


ALONE: Final = Ranks()
