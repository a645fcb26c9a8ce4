"""The server's door: TLS, and of the SuperLink's interfaces the one that nodes use, and no other.

The SuperLink has one port for all of its interfaces, and whoever reaches it may enrol a key and start an app. So it
listens on loopback, and hospitals reach this: ``POST /v1/fleet/…`` is passed on, where a call proves its node's key.
"""

import ssl
import sys
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .provision import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY

_LONGEST_S: Final = 60.0
_LARGEST_BYTES: Final = 1 << 30  # a message with the adapter of a large model
# Of one connection, and not of what is passed on.
_HOP: Final = frozenset(
    {"connection", "content-length", "host", "keep-alive", "proxy-authorization", "te", "transfer-encoding", "upgrade"}
)


def make_gate(superlink: str, authority: Path) -> Starlette:
    """The door to the SuperLink at ``superlink`` (host:port), whose certificate is one of ``authority``."""
    trusted = ssl.create_default_context(cafile=str(authority))
    inside = httpx.AsyncClient(base_url=f"https://{superlink}", verify=trusted, trust_env=False, timeout=_LONGEST_S)

    async def forward(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LARGEST_BYTES:
                return Response(status_code=413)
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        try:
            reply = await inside.post(f"/v1/fleet/{request.path_params['call']}", content=bytes(body), headers=headers)
        except httpx.TransportError:
            return Response(status_code=503)  # at which a node tries again; at most others it ends
        passed = {name: value for name, value in reply.headers.items() if name not in _HOP | {"content-encoding"}}
        return Response(reply.content, reply.status_code, passed)

    return Starlette(routes=[Route("/v1/fleet/{call:str}", forward, methods=["POST"])])


def main(host: str, port: str, superlink: str, certificates: str, inside: str) -> None:
    """``python -m grandrounds.deploy.gate HOST PORT SUPERLINK CERTIFICATES INSIDE``.

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
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
