"""The server's door: TLS, and of the SuperLink's interfaces the one that nodes use, and no other.

The SuperLink has one port for all of its interfaces, and whoever reaches it may enrol a key and start an app. So it
listens on loopback, and hospitals reach this: a call of ``_CALLS`` is passed on, and nothing under another name, once
whoever calls has proven a key. How large it may be is judged before it is read.

A node that asks for messages and gets none sleeps for three seconds, which is most of what an exchange would take. So
such a call is held here, and asked again inside, until there is a message or the node would rather be told that it has
to wait.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ...common.protocol.pieces import PIECE_BYTES
from ...common.system.privileges import keep_memory_private
from ...server.run.server_folder import ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY
from ..enrolment.node_keys import proven_key, public_pem
from .door import Door

_LONGEST_S: Final = 60.0
_PULL, _PUSH, _PUSH_OBJECT = "pull-messages", "push-messages", "push-object"
# All that an enrolled node says, by the one path of each. It registers no key, which is the operator's to do.
_CALLS: Final = {
    f"/v1/fleet/{call}".encode(): call
    for call in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", _PULL, _PUSH, "get-run", "get-fab"),
        *(_PUSH_OBJECT, "pull-object", "confirm-message-received"),
    )
}
_HOLD_S, _AGAIN_S = 10.0, 0.5
_BODY_S: Final = 30.0  # for the next part of a body, however small; and for all of it, beside what its size takes
_LEAST_RATE: Final = 1 << 13  # bytes in a second, at which the largest body that a caller may bring has to come
_LARGEST_BYTES: Final = 1 << 18  # of what is no part of a study's message
_BESIDE_A_PIECE: Final = 1 << 12  # what Flower writes around it
_MOST_OBJECTS: Final = 16  # of one answer, which has three
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


def make_gate(superlink: str, authority: Path, largest_object: Callable[[bytes], int]) -> Starlette:
    """The door to the SuperLink at ``superlink`` (host:port), whose certificate is one of ``authority``.

    ``largest_object`` is how many bytes a part of an answer may have that the node with this public key (PEM) brings.
    """
    trusted = ssl.create_default_context(cafile=str(authority))
    inside = httpx.AsyncClient(base_url=f"https://{superlink}", verify=trusted, trust_env=False, timeout=_LONGEST_S)

    async def forward(request: Request) -> Response:
        call = _CALLS.get(request.scope["raw_path"])
        if call is None:
            return _refusal(HTTPStatus.NOT_FOUND)
        key = proven_key(request.headers, now=datetime.now(UTC))
        if key is None:
            return _refusal(HTTPStatus.UNAUTHORIZED)
        try:
            body = await _body(request, largest_object(key) if call == _PUSH_OBJECT else _LARGEST_BYTES)
        except TimeoutError:
            return _refusal(HTTPStatus.REQUEST_TIMEOUT)
        except ClientDisconnect:
            return _refusal(HTTPStatus.BAD_REQUEST)  # to nobody
        if body is None:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if call == _PUSH and not _is_one_answer_of_its_sender(body):
            return _refusal(HTTPStatus.FORBIDDEN)
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
            # At which a node tries again; at most others it ends.
            return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
        passed = {name: value for name, value in reply.headers.items() if name not in _HOP | {"content-encoding"}}
        return Response(reply.content, reply.status_code, passed)

    return Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])])


def _refusal(status: HTTPStatus) -> Response:
    """Of a call that may not have been read to its end; nothing more is read of who makes it."""
    return Response(status_code=status, headers={"connection": "close"})


async def _body(request: Request, largest: int) -> bytes | None:
    """What a call brings; None where that is more than ``largest``.

    Raises TimeoutError where it stops coming, or comes too slowly for a connection to be kept for it.
    """
    received, parts = bytearray(), request.stream()
    async with asyncio.timeout(_BODY_S + largest / _LEAST_RATE):
        while True:
            async with asyncio.timeout(_BODY_S):
                part = await anext(parts, None)
            if part is None:
                return bytes(received)
            received += part
            if len(received) > largest:
                return None


def _is_one_answer_of_its_sender(body: bytes) -> bool:
    """Whether a node brings one answer, in its own name, of few parts, under the name of what it is an answer by.

    Flower proves who calls, and not that it is who answers; and of what follows the first answer it looks at nothing.
    """
    try:
        pushed = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    if (len(pushed.messages_list), len(pushed.message_object_trees)) != (1, 1):
        return False
    answer, tree = pushed.messages_list[0].metadata, pushed.message_object_trees[0]
    if answer.src_node_id != pushed.node.node_id or not answer.reply_to_message_id:
        return False
    return answer.message_id == tree.object_id and sum(1 for _ in iterate_object_tree(tree)) <= _MOST_OBJECTS


def largest_object(folder: ServerFolder, key: bytes) -> int:
    """How many bytes a part of an answer may have: those of a piece for who is enrolled, little for others."""
    known = {public_pem(site.node_key) for site in folder.sites().values()}
    if key not in known or not folder.has_study:
        return _LARGEST_BYTES
    return PIECE_BYTES + _BESIDE_A_PIECE


def main(path: str) -> None:
    """``python -m grandrounds.deploy.server_ops.gate DIR``, a server's folder."""
    keep_memory_private()
    folder = ServerFolder(Path(path))
    settings = folder.settings()
    gate = make_gate(settings.superlink, folder.inside / CA_CERTIFICATE, partial(largest_object, folder))
    certificate, key = folder.certificates / CERTIFICATE, folder.certificates / CERTIFICATE_KEY
    Door(gate, address=(settings.bind, settings.port), certificate=certificate, key=key).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
