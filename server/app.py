"""The Flower ServerApp of a study: grid in, grid out. Nothing else."""

import time
from collections.abc import Callable, Iterator, Mapping

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from ..common.messages import FIELD, RECORD
from .training import Training

POLL_INTERVAL_S = 0.2


def make_app(open_training: Callable[[Context], Training], nodes: Callable[[Grid], Mapping[str, int]]) -> ServerApp:
    """A ServerApp that carries a study's messages until its training is finished.

    ``nodes`` says which Flower node is which site; who a message is from is proven by its signature, not by its node.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        training = open_training(context)
        while not training.finished:
            for site, answer in _exchange(grid, nodes(grid), training.messages(), training.deadline_s):
                training.receive(site, answer)
            training.advance()

    return app


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
    pending = dict(zip(grid.push_messages(outgoing), addressed, strict=True))
    while pending:
        for reply in grid.pull_messages(list(pending)):
            site = pending.pop(reply.metadata.reply_to_message_id)
            yield site, _answer(reply)
        if not pending or time.monotonic() > deadline:
            return
        time.sleep(POLL_INTERVAL_S)


def _answer(reply: Message) -> bytes:
    """The envelope in a reply; empty if the node failed or sent something else."""
    if not reply.has_content():
        return b""
    answer = reply.content.config_records.get(RECORD, ConfigRecord()).get(FIELD, b"")
    return answer if isinstance(answer, bytes) else b""
