"""What the gate listens with: whoever comes may take up some of its connections, for some seconds, before a call.

Of who only connects, or says a call's head slowly or never, nothing may stay: each such connection holds a descriptor,
and when they are used up nobody comes in. A body's time and size are the gate's to judge, which knows who brings it.
"""

import asyncio
import resource
import socket
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

HANDSHAKE_S: Final = 10.0
HEAD_S: Final = 10.0  # for a call's headers, from the connection's beginning or their own
MOST_OF_ONE: Final = 128  # connections of one address, behind which may be several sites
MOST: Final = 1024
_END_S: Final = 2  # for calls in hand, once the gate is to end
_OWN_DESCRIPTORS: Final = 256  # what else a process has open: files, and its connections to the SuperLink
_PAUSE_S: Final = 0.5


class Door(uvicorn.Server):
    """Serves ``app`` over TLS at ``address``. Raises OSError where it cannot listen there."""

    def __init__(
        self,
        app: Starlette,
        *,
        address: tuple[str, int],
        certificate: Path,
        key: Path,
        handshake_s: float = HANDSHAKE_S,
        head_s: float = HEAD_S,
        most_of_one: int = MOST_OF_ONE,
    ) -> None:
        # h11, since it alone bounds the size of a call's head.
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_level="warning",
            timeout_graceful_shutdown=_END_S,
        )
        super().__init__(config)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listening = socket.create_server(address, family=family, backlog=MOST)
        self._listening.setblocking(False)
        self._handshake_s, self._head_s, self._most_of_one = handshake_s, head_s, most_of_one
        self._most = min(MOST, _descriptors() - _OWN_DESCRIPTORS)
        self._open: Counter[str] = Counter()
        self._welcoming: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: it listens nowhere itself."""
        await super().startup(sockets=[])
        self._accepting = asyncio.create_task(self._accept())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: let calls in hand end, and nobody in."""
        self._accepting.cancel()
        self._listening.close()
        await super().shutdown(sockets=[])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listening)
            except OSError:  # who called has gone, or the machine is short of something
                await asyncio.sleep(_PAUSE_S)
                continue
            party = party_of(peer[0])
            if self._open[party] >= self._most_of_one or self._open.total() >= self._most:
                connection.close()
                continue
            self._open[party] += 1
            task = asyncio.create_task(self._welcome(connection, party))
            self._welcoming.add(task)
            task.add_done_callback(self._welcoming.discard)

    async def _welcome(self, connection: socket.socket, party: str) -> None:
        loop, settings, state = asyncio.get_running_loop(), self.config, self.server_state
        protocol = _Connection(settings, state, self.lifespan.state, loop, self._head_s, lambda: self._left(party))
        try:
            await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=settings.ssl,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._handshake_s,
            )
        except OSError:  # no handshake, or none in time: it is closed
            self._left(party)

    def _left(self, party: str) -> None:
        self._open[party] -= 1
        if not self._open[party]:
            del self._open[party]


class _Connection(H11Protocol):
    """One connection, which ends unless a call's head comes in time."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        head_s: float,
        ended: Callable[[], None],
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._head_s, self._ended = head_s, ended
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._waiting is not None:
            self._waiting.cancel()
        self._ended()

    def _wait_for_head(self) -> None:
        called = self.cycle is not None and not self.cycle.response_complete
        if called and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        elif not called and self._waiting is None:
            self._waiting = self.loop.call_later(self._head_s, self.transport.abort)


def party_of(address: str) -> str:
    """Who is behind an address: of IPv6, whoever has the network of it that is given to one customer.

    >>> party_of("192.0.2.7"), party_of("2001:db8::1:2:3:4")
    ('192.0.2.7', '2001:db8::/64')
    """
    found = ip_address(address.partition("%")[0])
    return str(found) if found.version == 4 else str(ip_network((found, 64), strict=False))


def _descriptors() -> int:
    """How many descriptors this process may have, from here on as many as it is given."""
    _, given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, given))
    return given if given != resource.RLIM_INFINITY else sys.maxsize
