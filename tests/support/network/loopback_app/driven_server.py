"""Sends the nodes what a test says, and gives it what they answer, until it says nothing more."""

import time
from multiprocessing.connection import Client

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

from grandrounds.common.protocol.messages import FIELD, RECORD

app = ServerApp()


@app.main()
def main(grid, context):
    with Client(context.run_config["test"], "AF_UNIX") as test:
        while (messages := test.recv()) is not None:
            test.send(exchange(grid, messages))


def exchange(grid, messages):
    """For each site its answer; an error code of Flower's, or None, where its node was away.

    A message of more than one field is a mapping, and so is its answer.
    """
    nodes = {node.name: node.node_id for node in grid.get_nodes()}
    outgoing = {
        site: Message(
            RecordDict({RECORD: ConfigRecord(message if isinstance(message, dict) else {FIELD: message})}),
            dst_node_id=nodes[site],
            message_type=MessageType.TRAIN,
            ttl=300,
        )
        for site, message in messages.items()
        if site in nodes
    }
    answers = dict.fromkeys(messages)
    pending = dict(zip(grid.push_messages(list(outgoing.values())), outgoing, strict=True))
    while pending:
        for reply in grid.pull_messages(list(pending)):
            site = pending.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                answers[site] = reply.error.code
            else:
                said = dict(reply.content[RECORD])
                answers[site] = said[FIELD] if isinstance(messages[site], bytes) else said
        time.sleep(0.2)  # as in a study
    return answers
