"""The worker's end of its unix socket: who may ask, one request at a time, and an orderly end."""

import asyncio
import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...common.errors import StorageError
from ...common.system.content import BLOCK_BYTES, Content, Stored
from ...common.system.files import make_folder
from ..state.database import storage_errors
from ..worker_socket import HEAD, Kind
from .service import WorkerService

# How many requests may lie here at once, each as large as the study allows: one in hand, the others waiting.
_REQUESTS: Final = 4
_PIECE_BYTES: Final = 1 << 20
_FOLDER_MODE: Final = 0o750
_SOCKET_MODE: Final = 0o660
_CREDENTIALS: Final = struct.Struct("=iII")  # process, user, group (unix(7), SO_PEERCRED)
_log = logging.getLogger(__name__)


def serve(resident: WorkerService, path: Path, *, users: Collection[int] = (), patience_s: float = 30.0) -> None:
    """Answer at the unix socket ``path`` until SIGTERM or SIGINT; then finish the answer in hand, and close everything.

    Users other than this process's own and ``users`` (ids) get no answer. A peer has ``patience_s`` to send its request
    and again to take the answer. Requests are answered one at a time, in the order in which they were whole; health at
    any time. Raises StorageError where the socket cannot be opened.
    """
    try:
        with _listening(path) as listening:
            asyncio.run(_Server(resident, frozenset({os.geteuid(), *users}), patience_s).run(listening))
    finally:
        resident.close()


class _Server:
    """Connections, one request each. Only the answering itself has a thread of its own, always the same."""

    def __init__(self, resident: WorkerService, users: frozenset[int], patience_s: float) -> None:
        self._resident = resident
        self._users = users
        self._patience_s = patience_s
        self._largest_bytes = resident.largest_request_bytes
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._room = asyncio.Semaphore(_REQUESTS)
        self._turn = asyncio.Lock()  # its waiters are first in, first out
        self._stopping = asyncio.Event()

    async def run(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda loop, context: _log.error("unexpected: %s", context.get("exception") or context["message"])
        )
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stopping.set)
        server = await asyncio.start_unix_server(self._connected, sock=listening)
        _log.info("up")
        await self._stopping.wait()
        server.close()
        async with self._turn:  # after the answer in hand has left; those who wait for theirs are left without
            _log.info("down")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            user = _user(writer.get_extra_info("socket"))
            if user not in self._users:
                _log.warning("user %d is not allowed to ask", user)
                return
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError) as error:  # a peer that left, or was waited for in vain
            _log.warning("a peer was lost: %s", error)
        except StorageError as error:
            _log.error("a request is left unanswered: %s", error.diagnostics())
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._patience_s):
            kind, size = HEAD.unpack(await reader.readexactly(HEAD.size))
        if kind == Kind.HEALTH and size == 0:
            await self._send(writer, Kind.HEALTH, json.dumps(self._resident.health()).encode())
        elif kind == Kind.ENVELOPE and size <= self._largest_bytes:
            async with self._room:
                async with asyncio.timeout(self._patience_s):
                    request = await self._received(reader, size)
                async with self._turn:
                    await asyncio.sleep(0)  # a peer that sent and left at once is seen to have left one turn later
                    if not self._stopping.is_set() and not reader.at_eof():  # nobody would get the answer
                        loop = asyncio.get_running_loop()
                        answer = await loop.run_in_executor(self._thread, self._resident.answer, request)
                        await self._send(writer, Kind.ENVELOPE, answer)
        else:
            _log.warning("a request of kind %d with %d bytes is none", kind, size)

    async def _received(self, reader: asyncio.StreamReader, size: int) -> Content:
        """Exactly ``size`` bytes, of which a file takes many. Raises IncompleteReadError and StorageError."""
        if size <= BLOCK_BYTES:
            return await reader.readexactly(size)
        file = self._resident.nameless_file()
        while left := size - file.tell():
            piece = await reader.read(min(left, _PIECE_BYTES))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            with storage_errors():
                file.write(piece)
        with storage_errors():
            file.flush()
        return Stored(file)

    async def _send(self, writer: asyncio.StreamWriter, kind: Kind, body: bytes) -> None:
        async with asyncio.timeout(self._patience_s):
            writer.write(HEAD.pack(kind, len(body)))
            for start in range(0, len(body), _PIECE_BYTES):  # of which alone asyncio makes copies
                writer.write(memoryview(body)[start : start + _PIECE_BYTES])
                await writer.drain()
            writer.close()
            await writer.wait_closed()


def _user(peer: socket.socket) -> int:
    """Who connected, as the kernel says."""
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket bound to ``path`` and removed at the end; nobody can connect to it before it listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            _claim(path)
            listening.bind(str(path))
            path.chmod(_SOCKET_MODE)
            os.chown(path, -1, path.parent.stat().st_gid)
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


def _claim(path: Path) -> None:
    """Make the folder, or check it, and remove what a dead worker left. Raises StorageError and OSError."""
    folder = path.parent
    if not folder.exists():
        make_folder(folder)
        folder.chmod(_FOLDER_MODE)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o777 & ~_FOLDER_MODE:
        raise _unusable(path, f"its folder is not this user's own, or open to more than mode {_FOLDER_MODE:o}")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:  # of another site: a worker of this one would hold its state
                raise _unusable(path, "another worker answers there")


def _unusable(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"the socket {path} cannot be opened: {reason}",
        why="whoever can reach it can ask in the server's name, so only the site's own users may",
        fix=f"name a socket in a folder of the worker's user, of mode {_FOLDER_MODE:o}, whose group is that of "
        "Flower's user and one of the worker's own",
    )
