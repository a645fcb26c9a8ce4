"""How the nodes of Flower's simulation reach the workers of its sites: one unix socket for a run.

Flower simulates a node by whichever process is free when a message for it comes, so that nothing there could keep what
a worker holds between two exchanges. The workers stay in the ServerApp's process, and a node's ClientApp asks them. It
is answered while replies are pulled, in the thread that pulls: nothing else uses the model then, which all share.
"""

import logging
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.serverapp import Grid

from ...client.worker_socket import AskWorker
from ...common.errors import StorageError

_SOCKET: Final = "workers.sock"
_NEXT_S: Final = 0.05  # how long the next node may take to ask, until replies are looked for again
_log = logging.getLogger(__name__)


def ask(context: Context) -> AskWorker:
    """The exchange of this node with its site's worker. It raises OSError and EOFError where there is no answer."""

    def exchange(request: bytes) -> bytes:
        with Client(str(_folder(context.run_id) / _SOCKET), family="AF_UNIX") as worker:
            worker.send_bytes(str(context.node_id).encode())
            worker.send_bytes(request)
            return worker.recv_bytes()

    return exchange


@contextmanager
def listening(run_id: int) -> Iterator[socket.socket]:
    """The socket of a run, where this user's processes alone can ask, until the end. Raises StorageError."""
    folder = _folder(run_id)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as place:
        try:
            folder.mkdir(mode=0o700)  # fails where somebody else was first
            place.bind(str(folder / _SOCKET))
        except OSError as error:
            raise StorageError(
                f"{folder / _SOCKET} cannot be made: {error.strerror or error}",
                why="the simulated nodes ask the workers of their sites there",
                fix="let TMPDIR name a folder with a short path, in which this user may write",
            ) from error
        place.listen(socket.SOMAXCONN)
        place.settimeout(_NEXT_S)
        try:
            yield place
        finally:
            (folder / _SOCKET).unlink()
            folder.rmdir()


class AnsweringGrid:
    """What a study needs of a grid, whose workers answer while replies are pulled.

    ``workers`` are by node. ``is_lost(node, message)`` says which messages a worker never gets: their reply is silence.
    """

    def __init__(
        self,
        grid: Grid,
        place: socket.socket,
        workers: Mapping[int, AskWorker],
        is_lost: Callable[[int, Message], bool],
    ) -> None:
        """``place`` is where the nodes ask."""
        self._grid = grid
        self._place = place
        self._workers = workers
        self._is_lost = is_lost
        self._lost: dict[int, bool] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As Flower's."""
        pushed = list(messages)
        for message in pushed:
            node = message.metadata.dst_node_id
            self._lost[node] = self._is_lost(node, message)
        return self._grid.push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As Flower's, once all who ask now are answered."""
        while True:
            try:
                peer, _ = self._place.accept()
            except TimeoutError:
                return self._grid.pull_messages(message_ids)
            with Connection(peer.detach()) as node:
                self._answer(node)

    def _answer(self, node: "Connection[bytes, bytes]") -> None:
        try:
            node_id, request = int(node.recv_bytes()), node.recv_bytes()
            node.send_bytes(b"" if self._lost[node_id] else self._workers[node_id](request))
        except Exception as error:  # a node that went away, or a worker that failed: the others go on
            _log.error("no answer: %s", type(error).__name__)


def _folder(run_id: int) -> Path:
    """Where nodes and workers of one machine find each other; short, since a socket's path may have 107 bytes."""
    return Path(tempfile.gettempdir()) / f"grandrounds-{run_id}"
