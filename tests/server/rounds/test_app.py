"""The ServerApp: what it sends to whom, and what it makes of replies that are late, broken or missing."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from support.study.federation import Federation, small_study

from grandrounds.client.node.app import make_app as make_client_app
from grandrounds.client.node.parcels import Parcels
from grandrounds.common.protocol.messages import FIELD, RECORD
from grandrounds.common.system.content import Content
from grandrounds.deploy.simulation.local_grid import SERVER_NODE, App, LocalGrid, local_context
from grandrounds.server.rounds import app as server_app
from grandrounds.server.rounds.app import POLL_INTERVAL_S, carry, make_app
from grandrounds.server.rounds.pieces import InPieces
from grandrounds.server.rounds.training import Training

SITES = tuple(f"site-{i}" for i in range(1, 6))
WITHOUT_2 = tuple(site for site in SITES if site != "site-2")


def federation() -> Federation:
    """Each site's update is a vector of ones."""
    return Federation(
        study=small_study(), dimension=7, release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4")
    )


def run(
    federation: Federation, grid: LocalGrid, nodes: Callable[[LocalGrid], dict[str, int]] | None = None
) -> Training:
    app = make_app(lambda context: [federation.open_training()], lambda grid_: nodes(grid) if nodes else grid.nodes)
    app(grid, local_context(SERVER_NODE, "server"))
    return federation.training


def client_apps(federation: Federation) -> dict[str, Callable[[Message, Context], Message]]:
    app = make_client_app(lambda context: federation.workers[str(context.node_config["site"])].handle)
    return dict.fromkeys(SITES, app)


def test_every_message_is_a_train_message_to_the_site_s_node_within_the_deadline() -> None:
    sent: list[tuple[str, Message]] = []

    def keep(site: str, message: Message) -> bool:
        sent.append((site, message))
        return False

    shared = federation()
    run(shared, LocalGrid(client_apps(shared), keep))
    assert len(sent) == 5 * 5
    for _, message in sent:
        assert message.metadata.message_type == MessageType.TRAIN
        assert message.metadata.ttl == shared.study.training.deadline_s
        assert set(message.content) == {RECORD}
        assert set(message.content[RECORD]) == {FIELD}


def test_a_site_without_a_node_has_dropped_out() -> None:
    shared = federation()
    training = run(
        shared,
        LocalGrid(client_apps(shared), lambda site, message: False),
        lambda grid: {site: node for site, node in grid.nodes.items() if site != "site-2"},
    )
    assert training.rounds[0].survivors == WITHOUT_2


def test_who_a_message_is_from_is_proven_by_its_signature_and_not_by_its_node() -> None:
    shared = federation()

    def swapped(grid: LocalGrid) -> dict[str, int]:
        nodes = grid.nodes
        return nodes | {"site-2": nodes["site-3"], "site-3": nodes["site-2"]}

    training = run(shared, LocalGrid(client_apps(shared), lambda site, message: False), swapped)
    assert training.exhausted, "three sites are left where four are needed"
    assert training.rounds == []


def replying(reply: Callable[[Message], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(lambda message, context: reply(message))
    return app


BROKEN_REPLIES = {
    "an error": lambda message: Message(Error(2, "the node crashed"), reply_to=message),
    "no record": lambda message: Message(RecordDict(), reply_to=message),
    "no field": lambda message: Message(RecordDict({RECORD: ConfigRecord()}), reply_to=message),
    "no bytes": lambda message: Message(RecordDict({RECORD: ConfigRecord({FIELD: "text"})}), reply_to=message),
    "silence": lambda message: Message(RecordDict({RECORD: ConfigRecord({FIELD: b""})}), reply_to=message),
    "noise": lambda message: Message(RecordDict({RECORD: ConfigRecord({FIELD: b"noise"})}), reply_to=message),
}


@pytest.mark.parametrize("broken", BROKEN_REPLIES)
def test_a_broken_reply_removes_its_site_and_nobody_else(broken: str) -> None:
    shared = federation()
    apps = client_apps(shared) | {"site-2": replying(BROKEN_REPLIES[broken])}
    training = run(shared, LocalGrid(apps, lambda site, message: False))
    assert training.rounds[0].survivors == WITHOUT_2
    assert training.rounds[0].outcomes[0].dropouts == {"site-2": "advert"}


def renamed(reply: Message, *, answers: str) -> Message:
    """A reply that says it answers another message than it does."""
    reply.metadata.__dict__["_reply_to_message_id"] = answers
    return reply


def raising(message: Message, context: Context) -> Message:
    """What Flower does where it cannot make an object of what a node sent."""
    raise KeyError("a part that is not there")


HOSTILE_REPLIES: dict[str, App] = {
    "an answer to no message": lambda message, context: renamed(BROKEN_REPLIES["silence"](message), answers="none"),
    "an answer to everybody's first message": lambda message, context: renamed(
        BROKEN_REPLIES["noise"](message), answers="message-1"
    ),
    "another object than a message": lambda message, context: cast(Message, ConfigRecord({FIELD: b""})),
    "another record than is due": lambda message, context: Message(
        RecordDict({RECORD: MetricRecord({FIELD: 1})}), reply_to=message
    ),
    "what is no object": raising,
}


@pytest.mark.parametrize("hostile", HOSTILE_REPLIES)
def test_a_reply_that_no_honest_node_sends_removes_its_site_and_nobody_else(hostile: str) -> None:
    shared = federation()
    apps: dict[str, App] = {**client_apps(shared), "site-2": HOSTILE_REPLIES[hostile]}
    training = run(shared, LocalGrid(apps, lambda site, message: False))
    assert training.rounds[0].survivors == WITHOUT_2
    assert training.rounds[0].outcomes[0].dropouts == {"site-2": "advert"}


def test_a_node_cannot_answer_in_another_s_place() -> None:
    shared = federation()
    first, others = [], client_apps(shared)

    def remembering(message: Message, context: Context) -> Message:
        first.append(message.metadata.message_id)
        return others["site-1"](message, context)

    def impostor(message: Message, context: Context) -> Message:
        return renamed(BROKEN_REPLIES["noise"](message), answers=f"message-{int(first[-1].partition('-')[2]) + 2}")

    apps: dict[str, App] = {**others, "site-1": remembering, "site-2": impostor}
    training = run(shared, LocalGrid(apps, lambda site, message: False))
    assert training.rounds[0].survivors == WITHOUT_2, "site-3, in whose place it answered, is there"


@dataclass
class Question:
    """A conversation of one exchange with two sites."""

    answers: dict[str, bytes] = field(default_factory=dict)
    finished: bool = False
    deadline_s: float = 60.0

    def messages(self) -> dict[str, bytes]:
        return {"site-1": b"a question", "site-2": b"a question"}

    def receive(self, site: str, answer: Content) -> None:
        assert site not in self.answers
        self.answers[site] = bytes(answer[:])

    def advance(self) -> None:
        self.finished = True


class Inflating(LocalGrid):
    """A grid that makes replies of the objects that nodes sent, as Flower does; site-1's are ``altered``."""

    def __init__(self, altered: Callable[[str, dict[str, bytes]], str]) -> None:
        app = make_client_app(lambda context: lambda request: b"an answer of " + str(context.node_config).encode())
        super().__init__(dict.fromkeys(("site-1", "site-2"), app), lambda site, message: False)
        self._altered = altered

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            message = self._pending.pop(identifier)
            reply = self._deliver(message)
            contents, root = {i: found.deflate() for i, found in get_all_nested_objects(reply).items()}, reply.object_id
            if self._sites[message.metadata.dst_node_id] == "site-1":
                root = self._altered(root, contents)
            yield cast(Message, inflate_object_from_contents(root, contents))


@given(st.data())
def test_whatever_a_node_sends_is_its_own_answer_or_none_and_the_other_s_stays_what_it_is(data: st.DataObject) -> None:
    def altered(root: str, contents: dict[str, bytes]) -> str:
        objects = sorted(contents)
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(objects))
            content, start = contents[name], data.draw(st.integers(0, 120))
            replaced = data.draw(st.binary(max_size=12))
            contents[name] = content[:start] + replaced + content[start + data.draw(st.integers(0, 12)) :]
        return data.draw(st.sampled_from([root, *objects]))

    question, grid = Question(), Inflating(altered)
    carry([question], grid, lambda grid_: grid.nodes)
    assert question.answers["site-2"] == b"an answer of {'site': 'site-2'}"
    assert isinstance(question.answers["site-1"], bytes)


@dataclass
class Clock:
    """Time that passes only while the server sleeps."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class SlowGrid(LocalGrid):
    """A network on which site-2's replies arrive ``delay_s`` after they were asked for."""

    def __init__(self, federation: Federation, clock: Clock, delay_s: float) -> None:
        super().__init__(client_apps(federation), lambda site, message: False)
        self.clock = clock
        self.delay_s = delay_s
        self.due: dict[str, float] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = [identifier for identifier in message_ids if identifier in self._pending]
        slow = {i for i in asked if self._sites[self._pending[i].metadata.dst_node_id] == "site-2"}
        for identifier in slow:
            self.due.setdefault(identifier, self.clock.now + self.delay_s)
        yield from super().pull_messages(i for i in asked if i not in slow or self.clock.now >= self.due[i])


def slow_run(monkeypatch: pytest.MonkeyPatch, delay_s: float) -> tuple[Training, Clock]:
    shared, clock = federation(), Clock()
    monkeypatch.setattr(server_app, "time", clock)
    return run(shared, SlowGrid(shared, clock, delay_s)), clock


def test_a_slow_site_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline_s = small_study().training.deadline_s
    training, clock = slow_run(monkeypatch, 0.9 * deadline_s)
    assert training.rounds[0].survivors == SITES
    assert 5 * 0.9 * deadline_s <= clock.now <= 5 * deadline_s
    assert set(clock.slept) == {POLL_INTERVAL_S}


def test_a_site_that_misses_the_deadline_has_dropped_out_and_nobody_waits_for_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadline_s = small_study().training.deadline_s
    training, clock = slow_run(monkeypatch, 1.1 * deadline_s)
    assert training.rounds[0].survivors == WITHOUT_2
    assert training.rounds[0].outcomes[0].dropouts == {"site-2": "advert"}
    assert deadline_s < clock.now < 1.01 * deadline_s


LARGE = bytes(range(100)) * 3


@dataclass
class Pieces(Question):
    """Every site is sent a message in pieces, and its answer comes so."""

    deadline_s: float = 600.0

    def messages(self) -> dict[str, bytes]:
        return {"site-1": LARGE, "site-2": LARGE}


class Killed(LocalGrid):
    """Nodes of whose replies ``lost(site, message)`` says which never come; what they were told is ``told``."""

    def __init__(self, folder: Path, clock: Clock, lost: Callable[[str, Message], bool]) -> None:
        def ask(request: IO[bytes], answer: IO[bytes]) -> None:
            answer.write(request.read()[::-1])

        def app(message: Message, context: Context) -> Message:
            place = folder / str(context.node_config["site"])
            place.mkdir(parents=True, exist_ok=True)
            parcels = Parcels(folder=place, largest_bytes=1000, ask=ask, piece_bytes=64)
            reply = parcels.answered(message.content.config_records[RECORD])
            return Message(RecordDict({RECORD: ConfigRecord(reply)}), reply_to=message)

        super().__init__(dict.fromkeys(("site-1", "site-2"), app), lambda site, message: False)
        self.told: list[tuple[float, str, Message]] = []
        self._clock, self._lost = clock, lost

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            if (message := self._pending.pop(identifier, None)) is not None:
                site = self._sites[message.metadata.dst_node_id]
                self.told.append((self._clock.now, site, message))
                if not self._lost(site, message):
                    yield self._deliver(message)


def carried_in_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lost: Callable[[str, Message], bool]
) -> tuple[Pieces, Killed]:
    clock = Clock()
    monkeypatch.setattr(server_app, "time", clock)
    question, grid = Pieces(), Killed(folder, clock, lost)
    carry([question], grid, lambda grid_: grid.nodes, InPieces(folder=folder, largest_bytes=1000, piece_bytes=64))
    return question, grid


def test_a_large_message_and_its_answer_are_carried_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question, grid = carried_in_pieces(tmp_path, monkeypatch, lambda site, message: False)
    assert question.answers == {"site-1": LARGE[::-1], "site-2": LARGE[::-1]}
    assert len(grid.told) == 2 * (5 + 1 + 4), "the pieces, the question itself, and what is left of the answer"


@pytest.mark.parametrize("repeated", ["piece", "answer"])
def test_a_piece_that_nobody_replied_to_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: str
) -> None:
    lost = Counter[str]()

    def twice(site: str, message: Message) -> bool:
        if site == "site-2" and repeated in message.content[RECORD] and lost[site] < 2:
            lost[site] += 1
            return True
        return False

    question, grid = carried_in_pieces(tmp_path, monkeypatch, twice)
    assert question.answers == {"site-1": LARGE[::-1], "site-2": LARGE[::-1]}
    told = [
        (at, message) for at, site, message in grid.told if site == "site-2" and repeated in message.content[RECORD]
    ]
    assert told[0][1].content == told[1][1].content == told[2][1].content
    assert [round(at - told[0][0]) for at, _ in told[:3]] == [0, 60, 180], "each time with twice the patience"
    assert [message.metadata.ttl for _, message in told[:3]] == [60, 120, 240], "so that none comes with the next"


def test_a_piece_is_told_again_soon_where_its_node_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, deliver = [True], LocalGrid._deliver

    def reached(grid: Killed, message: Message) -> Message:
        return Message(Error(2, "away"), reply_to=message) if away and away.pop() else deliver(grid, message)

    monkeypatch.setattr(Killed, "_deliver", reached)
    question, grid = carried_in_pieces(tmp_path, monkeypatch, lambda site, message: False)
    assert question.answers == {"site-1": LARGE[::-1], "site-2": LARGE[::-1]}
    assert grid.told[-1][0] < 10


def test_what_makes_a_site_answer_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question, grid = carried_in_pieces(
        tmp_path, monkeypatch, lambda site, message: site == "site-2" and set(message.content[RECORD]) == {"whole"}
    )
    assert question.answers == {"site-1": LARGE[::-1]}
    assert [set(message.content[RECORD]) for _, site, message in grid.told if site == "site-2"][-1] == {"whole"}
