"""The ClientApp of a deployment, for who runs Flower's own executor: it asks the worker at the node's socket.

A site that runs Grand Rounds' relay never loads it.
"""

from pathlib import Path

from flwr.app import Context

from ..client.app import Exchange, make_app
from ..client.link import connect

_LONGEST_S = 604_800.0  # as the longest deadline of a study


def _connect(context: Context) -> Exchange:
    return connect(Path(str(context.node_config["socket"])), timeout_s=_LONGEST_S)


app = make_app(_connect)
