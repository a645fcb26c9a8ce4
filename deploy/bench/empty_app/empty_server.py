"""Sends each node an empty message and waits for all of them, some times over; leaves how long each time took."""

import json
import time
from collections.abc import Collection
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

POLL_INTERVAL_S = 0.2  # as a study's ServerApp; Flower's own `send_and_receive` asks every 3 s

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write the seconds of each of ``trips`` to ``nodes`` (names with spaces between) to the file ``times``."""
    config = context.run_config
    nodes = connected(grid, str(config["nodes"]).split())
    times = [round_trip_s(grid, nodes) for _ in range(int(config["trips"]))]
    path = Path(str(config["times"]))
    part = path.with_suffix(".part")
    part.write_text(json.dumps(times))
    part.rename(path)  # whoever waits for it finds it whole


def connected(grid: Grid, names: Collection[str]) -> list[int]:
    """The ids of the nodes, once all are connected."""
    while True:
        nodes = {node.name: node.node_id for node in grid.get_nodes()}
        if nodes.keys() >= set(names):
            return [nodes[name] for name in names]
        time.sleep(POLL_INTERVAL_S)


def round_trip_s(grid: Grid, nodes: Collection[int]) -> float:
    """How long it takes until every node has answered an empty message. Raises RuntimeError if one fails."""
    started = time.perf_counter()
    messages = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]
    pending = set(grid.push_messages(messages))
    while True:
        for reply in grid.pull_messages(list(pending)):
            if reply.has_error():
                raise RuntimeError(f"a node failed: {reply.error.reason}")
            pending.remove(reply.metadata.reply_to_message_id)
        if not pending:
            return time.perf_counter() - started
        time.sleep(POLL_INTERVAL_S)
