"""A grid on which nobody waits for another's reply.

Flower fetches the parts of a reply until all are there, for hours where its sender withholds one. Whoever asked for the
replies of several sites one after the other would find that those of the others have run out of time.
"""

from collections.abc import Iterable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Final

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

_LOOK_S: Final = 1.0  # how long a reply is waited for in one call; what takes longer goes on beside it


class ConcurrentGrid:
    """What a study needs of a grid; each reply is fetched in a thread of its own, which ends with the process."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._fetching: dict[str, Future[list[Message]]] = {}

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As Flower's."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As Flower's."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are whole by now; raises what Flower raised over one."""
        for identifier in message_ids:
            if identifier not in self._fetching:
                self._fetching[identifier] = Future()
                Thread(target=self._fetch, args=(identifier, self._fetching[identifier]), daemon=True).start()
            fetching = self._fetching[identifier]
            wait((fetching,), _LOOK_S)
            if fetching.done():
                yield from self._fetching.pop(identifier).result()

    def _fetch(self, identifier: str, fetching: Future[list[Message]]) -> None:
        try:
            fetching.set_result(list(self._grid.pull_messages([identifier])))
        except BaseException as error:
            fetching.set_exception(error)
