"""The grid of a deployment: a site that withholds a part of its reply keeps nobody waiting but itself."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import cast

import pytest
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException

from grandrounds.client.node.app import make_app
from grandrounds.common.system.content import Content
from grandrounds.deploy.flower.concurrent_grid import ConcurrentGrid
from grandrounds.deploy.simulation.local_grid import LocalGrid
from grandrounds.server.rounds.app import carry

SITES = ("site-1", "site-2", "site-3")


@dataclass
class Question:
    """A conversation of one exchange, whose deadline is soon."""

    answers: dict[str, bytes] = field(default_factory=dict)
    finished: bool = False
    deadline_s: float = 0.01

    def messages(self) -> dict[str, bytes]:
        return dict.fromkeys(SITES, b"a question")

    def receive(self, site: str, answer: Content) -> None:
        self.answers[site] = bytes(answer[:])

    def advance(self) -> None:
        self.finished = True


class Withholding(LocalGrid):
    """A grid that waits for a part of site-1's reply until the test is over, as Flower does for hours."""

    def __init__(self) -> None:
        answering = make_app(lambda context: lambda request: b"an answer")
        super().__init__(dict.fromkeys(SITES, answering), lambda site, message: False)
        self.over = Event()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            if self._sites[self._pending[identifier].metadata.dst_node_id] == "site-1":
                self.over.wait()
            yield from super().pull_messages([identifier])


@pytest.fixture
def withholding() -> Iterator[Withholding]:
    grid = Withholding()
    yield grid
    grid.over.set()


def carried(grid: LocalGrid) -> dict[str, bytes]:
    question = Question()
    carry([question], cast(Grid, ConcurrentGrid(grid)), lambda _: grid.nodes)
    return question.answers


def test_who_withholds_a_part_of_a_reply_is_absent_and_the_others_are_there(withholding: Withholding) -> None:
    assert carried(withholding) == dict.fromkeys(SITES[1:], b"an answer")


class Failing(LocalGrid):
    """A grid that raises ``error`` over site-1's reply."""

    def __init__(self, error: BaseException) -> None:
        answering = make_app(lambda context: lambda request: b"an answer")
        super().__init__(dict.fromkeys(SITES, answering), lambda site, message: False)
        self.error = error

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (identifier,) = message_ids
        if self._sites[self._pending[identifier].metadata.dst_node_id] == "site-1":
            raise self.error
        return super().pull_messages([identifier])


def test_what_flower_raises_over_a_reply_is_that_site_s_and_nobody_else_s() -> None:
    assert carried(Failing(TimeoutError())) == {"site-1": b"", **dict.fromkeys(SITES[1:], b"an answer")}


def test_a_run_that_was_stopped_ends() -> None:
    with pytest.raises(RunNotRunningException):
        carried(Failing(RunNotRunningException()))
