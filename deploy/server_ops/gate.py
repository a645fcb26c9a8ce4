"""The server's door: TLS, and of the SuperLink's interfaces the one that nodes use, and no other.

The SuperLink has one port for all of its interfaces, and whoever reaches it may enrol a key and start an app. So it
listens on loopback, and hospitals reach this: ``POST /v1/fleet/…`` is passed on, where a call proves its node's key.

A node that asks for messages and gets none sleeps for three seconds, which is most of what an exchange would take. So
such a call is held here, and asked again inside, until there is a message or the node would rather be told that it has
to wait.
"""

import asyncio
import ssl
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY

_LONGEST_S: Final = 60.0
_PULL, _PUSH = "pull-messages", "push-messages"
_HOLD_S, _AGAIN_S = 10.0, 0.5
_END_S: Final = 2  # for calls in hand, once the gate is to end
_LARGEST_BYTES: Final = 1 << 30  # a message with the adapter of a large model
# Of one connection, and not of what is passed on; the gate dates its answers itself.
_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "host",
        "keep-alive",
        "proxy-authorization",
        "server",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)


def make_gate(superlink: str, authority: Path) -> Starlette:
    """The door to the SuperLink at ``superlink`` (host:port), whose certificate is one of ``authority``."""
    trusted = ssl.create_default_context(cafile=str(authority))
    inside = httpx.AsyncClient(base_url=f"https://{superlink}", verify=trusted, trust_env=False, timeout=_LONGEST_S)

    async def forward(request: Request) -> Response:
        received = bytearray()
        async for chunk in request.stream():
            received += chunk
            if len(received) > _LARGEST_BYTES:
                return Response(status_code=413)
        body, call = bytes(received), request.path_params["call"]
        if call == _PUSH and _speaks_for_another(body):
            return Response(status_code=HTTPStatus.FORBIDDEN)
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        deadline = time.monotonic() + _HOLD_S
        try:
            while True:
                reply = await inside.post(f"/v1/fleet/{call}", content=body, headers=headers)
                nothing = call == _PULL and reply.status_code == HTTPStatus.OK and not reply.content
                if not nothing or time.monotonic() > deadline or await request.is_disconnected():
                    break
                await asyncio.sleep(_AGAIN_S)
        except httpx.TransportError:
            return Response(status_code=503)  # at which a node tries again; at most others it ends
        passed = {name: value for name, value in reply.headers.items() if name not in _HOP | {"content-encoding"}}
        return Response(reply.content, reply.status_code, passed)

    return Starlette(routes=[Route("/v1/fleet/{call:str}", forward, methods=["POST"])])


def _speaks_for_another(body: bytes) -> bool:
    """Whether a node brings an answer in another's name. Flower proves who calls, and not that it is who answers."""
    try:
        pushed = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False  # and Flower will not read it either
    return any(message.metadata.src_node_id != pushed.node.node_id for message in pushed.messages_list)


def main(host: str, port: str, superlink: str, certificates: str, inside: str) -> None:
    """``python -m grandrounds.deploy.server_ops.gate HOST PORT SUPERLINK CERTIFICATES INSIDE``.

    The folder CERTIFICATES has what hospitals see, INSIDE the SuperLink's authority.
    """
    folder = Path(certificates)
    uvicorn.run(
        make_gate(superlink, Path(inside) / CA_CERTIFICATE),
        host=host,
        port=int(port),
        ssl_certfile=str(folder / CERTIFICATE),
        ssl_keyfile=str(folder / CERTIFICATE_KEY),
        log_level="warning",
        timeout_graceful_shutdown=_END_S,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
