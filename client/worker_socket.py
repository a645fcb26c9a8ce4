"""The worker's socket: how both ends frame a request and its answer, and the end of those who ask. Loads little."""

import json
import socket
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import IO, Any, Final

# Request bytes -> answer bytes, empty where the site stays silent. Behind it stands a worker, here or at a socket.
AskWorker = Callable[[bytes], bytes]
# Before every body, in both directions: what it is, and how many bytes it has.
HEAD: Final = struct.Struct("<BQ")
_PIECE_BYTES: Final = 1 << 20
_AGAIN_S: Final = 0.1


class _AwayError(ConnectionError):
    """Nobody listens there, so that nothing was sent."""


class Kind(IntEnum):
    """What is asked for. The answer is of the same kind."""

    ENVELOPE = 1
    HEALTH = 2


def connect(path: Path, *, timeout_s: float) -> AskWorker:
    """``carry_to`` of bytes."""
    carry = carry_to(path, timeout_s=timeout_s)

    def exchange(request: bytes) -> bytes:
        answer = BytesIO()
        carry(BytesIO(request), answer)
        return answer.getvalue()

    return exchange


def carry_to(path: Path, *, timeout_s: float) -> Callable[[IO[bytes], IO[bytes]], None]:
    """The exchange with the worker whose socket is ``path``: a connection of its own for each request.

    It reads a request to its end, and writes the answer; of neither more than a part is in memory. An answer is due
    within ``timeout_s`` from when it is asked for; so long a worker that is not up, since it loads
    model and records or is started again, is waited for too. The exchange raises OSError, with TimeoutError and
    ConnectionError among them, where none came whole. Who asks again gets no second answer: the worker sees to that.
    """

    def exchange(request: IO[bytes], answer: IO[bytes]) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return _ask(path, Kind.ENVELOPE, request, answer, deadline)
            except _AwayError as error:
                if time.monotonic() > deadline - _AGAIN_S:
                    raise TimeoutError("no worker was up in time") from error
                time.sleep(_AGAIN_S)

    return exchange


def health(path: Path, *, timeout_s: float = 10.0) -> dict[str, Any]:
    """How the worker is, as ``WorkerService.health`` says. Raises OSError where it does not say."""
    answer = BytesIO()
    _ask(path, Kind.HEALTH, BytesIO(), answer, time.monotonic() + timeout_s)
    said: dict[str, Any] = json.loads(answer.getvalue())
    return said


def _ask(path: Path, kind: Kind, request: IO[bytes], answer: IO[bytes], deadline: float) -> None:
    start = request.tell()
    size = request.seek(0, SEEK_END) - start
    request.seek(start)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as worker:
        worker.settimeout(max(_AGAIN_S, deadline - time.monotonic()))
        try:
            worker.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise _AwayError("it is not up") from error
        worker.sendall(HEAD.pack(kind, size))
        while piece := request.read(_PIECE_BYTES):
            worker.sendall(piece)
        head = BytesIO()
        _receive(worker, HEAD.size, head, deadline)
        answered, size = HEAD.unpack(head.getvalue())
        if answered != kind:
            raise ConnectionError("the worker answered something else")
        _receive(worker, size, answer, deadline)


def _receive(worker: socket.socket, size: int, place: IO[bytes], deadline: float) -> None:
    """Write exactly ``size`` bytes to ``place``."""
    while size:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the worker did not answer in time")
        worker.settimeout(left_s)
        piece = worker.recv(min(size, _PIECE_BYTES))
        if not piece:
            raise ConnectionError("the worker left before its answer was whole")
        place.write(piece)
        size -= len(piece)
