"""The ClientApp of a study, as Flower's own executors load it: it asks the worker of its node's site.

A site that runs Grand Rounds' relay never loads it.
"""

from pathlib import Path

from flwr.app import Context

from ...client.node.app import make_app
from ...client.worker_socket import AskWorker, connect
from .simulated_nodes import ask

_LONGEST_S = 604_800.0  # as the longest deadline of a study


def _connect(context: Context) -> AskWorker:
    socket = context.node_config.get("socket")  # as a site configures its node; simulated ones have none
    return ask(context) if socket is None else connect(Path(str(socket)), timeout_s=_LONGEST_S)


app = make_app(_connect)
