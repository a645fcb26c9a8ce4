"""The Flower ServerApp of a study: grid in, grid out. Nothing else."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from ...common.errors import EnvelopeError
from ...common.protocol.messages import RECORD
from ...common.system.content import Content
from .pieces import Carried, Record, may_repeat, whole

POLL_INTERVAL_S = 0.2
_PATIENCE_S: Final = 60.0  # for the reply to a piece
_PAUSE_S: Final = 2.0  # after a node that could not be reached
_log = logging.getLogger(__name__)


class Conversation(Protocol):
    """A state machine at the server: a study's training, or its closing."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to say."""

    @property
    def deadline_s(self) -> float:
        """How long the current exchange may take."""

    def messages(self) -> Mapping[str, Content]:
        """What each site is to be sent now."""

    def receive(self, site: str, answer: Content) -> None:
        """One site's answer."""

    def advance(self) -> None:
        """All answers are in, or the deadline passed."""


def make_app(
    open_study: Callable[[Context], Iterable[Conversation]], nodes: Callable[[Grid], Mapping[str, int]]
) -> ServerApp:
    """A ServerApp that carries a study's conversations, one after the other.

    ``nodes`` says which Flower node is which site; who a message is from is proven by its signature, not by its node.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        carry(open_study(context), grid, nodes)

    return app


def carry(
    conversations: Iterable[Conversation],
    grid: Grid,
    nodes: Callable[[Grid], Mapping[str, int]],
    carried: Callable[[Content], Carried] = whole,
) -> None:
    """Carry conversations over the grid, one after the other; whatever they raise ends it.

    ``carried`` says by which messages of Flower's one of a conversation travels.
    """
    for conversation in conversations:
        while not conversation.finished:
            messages = conversation.messages()
            for site, answer in _exchange(grid, nodes(grid), messages, conversation.deadline_s, carried):
                conversation.receive(site, answer)
            conversation.advance()


def _exchange(
    grid: Grid,
    nodes: Mapping[str, int],
    messages: Mapping[str, Content],
    deadline_s: float,
    carried: Callable[[Content], Carried],
) -> Iterator[tuple[str, Content]]:
    """Send one message to each site; yield the answers as they come, until all are in or the deadline passed."""
    deadline = time.monotonic() + deadline_s
    asked = {site: _Asked(nodes[site], carried(message)) for site, message in messages.items() if site in nodes}
    while True:
        _tell([each for each in asked.values() if each.is_to_be_told], grid, deadline_s)
        for site, each in tuple(asked.items()):
            if each.is_lost:
                del asked[site]
            elif (reply := _reply_to(each.identifier, grid)) is not None:
                answer = each.answer_by(reply)
                if answer is not None:
                    yield site, answer
                    del asked[site]
        if not asked or time.monotonic() > deadline:
            return
        if not any(each.is_to_be_told for each in asked.values()):
            time.sleep(POLL_INTERVAL_S)


class _Asked:
    """One site in one exchange, and what it is told next of the message that it gets.

    A piece of a large message is told again where no reply to it comes, each time with twice the patience: who carried
    it was killed, perhaps, and is back. What makes a site answer is told once.
    """

    def __init__(self, node: int, carried: Carried) -> None:
        self.node = node
        self.identifier = ""  # Flower's, of the message that is under way
        self._carried = carried
        self._record = next(carried)
        self._patience_s = _PATIENCE_S
        self._due = 0.0  # when it is to be told

    @property
    def is_to_be_told(self) -> bool:
        return time.monotonic() >= self._due

    @property
    def is_lost(self) -> bool:
        """Whether it was not told, and is not to be again."""
        return not self.identifier and self._due == math.inf

    def message(self, deadline_s: float) -> Message:
        """What tells it."""
        repeated = may_repeat(self._record)
        ttl = min(deadline_s, self._patience_s) if repeated else deadline_s
        self._due = time.monotonic() + self._patience_s if repeated else math.inf
        self._patience_s *= 2
        content = RecordDict({RECORD: ConfigRecord(dict(self._record))})
        return Message(content, dst_node_id=self.node, message_type=MessageType.TRAIN, ttl=ttl)

    def answer_by(self, reply: Record) -> Content | None:
        """The site's answer, if the ``reply`` is the last of it; empty where the reply is of no use."""
        if not reply and may_repeat(self._record):
            self.identifier, self._due = "", time.monotonic() + _PAUSE_S
            return None
        try:
            self._record = self._carried.send(reply)
        except StopIteration as end:
            answer: Content = end.value
            return answer
        except EnvelopeError as error:
            _log.warning("no answer: %s", error.what)
            return b""
        self._patience_s, self._due = _PATIENCE_S, 0.0
        return None


def _tell(asked: Sequence[_Asked], grid: Grid, deadline_s: float) -> None:
    # One by one: Flower makes several times a piece of it. Of a message that could not be pushed there is no id.
    for each in asked:
        each.identifier = next(iter(grid.push_messages([each.message(deadline_s)])), "") or ""


def _reply_to(identifier: str, grid: Grid) -> Record | None:
    """The fields of the reply to one message, none if its node failed or sent something else; None without a reply.

    Each is asked for alone, and is whatever came: what a reply says that it answers, its sender wrote. Whatever is
    raised is of that reply too: Flower makes objects of its sender's bytes, and of those it can be anything.
    """
    if not identifier:
        return None
    try:
        for reply in grid.pull_messages([identifier]):
            return reply.content.config_records[RECORD] if reply.has_content() else {}
    except Exception as error:
        _log.warning("no answer: what came is %s", type(error).__name__)
        return {}
    return None
