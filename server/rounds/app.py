"""The Flower ServerApp of a study: grid in, grid out. Nothing else."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from ...common.protocol.messages import FIELD, RECORD

POLL_INTERVAL_S = 0.2
_log = logging.getLogger(__name__)


class Conversation(Protocol):
    """A state machine at the server: a study's training, or its closing."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to say."""

    @property
    def deadline_s(self) -> float:
        """How long the current exchange may take."""

    def messages(self) -> Mapping[str, bytes]:
        """What each site is to be sent now."""

    def receive(self, site: str, answer: bytes) -> None:
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


def carry(conversations: Iterable[Conversation], grid: Grid, nodes: Callable[[Grid], Mapping[str, int]]) -> None:
    """Carry conversations over the grid, one after the other; whatever they raise ends it."""
    for conversation in conversations:
        while not conversation.finished:
            messages = conversation.messages()
            for site, answer in _exchange(grid, nodes(grid), messages, conversation.deadline_s):
                conversation.receive(site, answer)
            conversation.advance()


def _exchange(
    grid: Grid, nodes: Mapping[str, int], messages: Mapping[str, bytes], deadline_s: float
) -> Iterator[tuple[str, bytes]]:
    """Send one message to each site; yield the answers as they come, until all are in or the deadline passed."""
    deadline = time.monotonic() + deadline_s
    addressed = {site: message for site, message in messages.items() if site in nodes}
    outgoing = [
        Message(
            RecordDict({RECORD: ConfigRecord({FIELD: message})}),
            dst_node_id=nodes[site],
            message_type=MessageType.TRAIN,
            ttl=deadline_s,
        )
        for site, message in addressed.items()
    ]
    # Of a message that could not be pushed there is no id, and of none where all together were too large.
    pushed = zip(grid.push_messages(outgoing), addressed, strict=False)
    pending = {identifier: site for identifier, site in pushed if identifier}
    while pending:
        for identifier in tuple(pending):
            answer = _answer_to(identifier, grid)
            if answer is not None:
                yield pending.pop(identifier), answer
        if not pending or time.monotonic() > deadline:
            return
        time.sleep(POLL_INTERVAL_S)


def _answer_to(identifier: str, grid: Grid) -> bytes | None:
    """The envelope in the reply to one message, empty if its node failed or sent something else; None without a reply.

    Each is asked for alone, and is whatever came: what a reply says that it answers, its sender wrote. Whatever is
    raised is of that reply too: Flower makes objects of its sender's bytes, and of those it can be anything.
    """
    try:
        for reply in grid.pull_messages([identifier]):
            answer = reply.content.config_records[RECORD][FIELD] if reply.has_content() else b""
            return answer if isinstance(answer, bytes) else b""
    except Exception as error:
        _log.warning("no answer: what came is %s", type(error).__name__)
        return b""
    return None
