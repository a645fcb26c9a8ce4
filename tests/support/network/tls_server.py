"""A server with TLS on loopback that answers every request alike, in place of what hospitals reach."""

import threading
import time

import uvicorn
from starlette.responses import Response

from grandrounds.deploy.enrolment.certificates import CERTIFICATE, CERTIFICATE_KEY


class TlsServer:
    """From ``with`` to its end at ``port``; ``certificates`` is a folder as ``provision`` makes it, None for no TLS."""

    def __init__(self, certificates, *, status=200, headers=None):
        async def answer(scope, receive, send):
            self.paths.append(scope["path"])
            await Response(status_code=status, headers=headers)(scope, receive, send)

        self.paths = []
        tls = {}
        if certificates is not None:
            tls = {
                "ssl_certfile": certificates / CERTIFICATE,
                "ssl_keyfile": certificates / CERTIFICATE_KEY,
            }
        config = uvicorn.Config(answer, port=0, lifespan="off", log_config=None, date_header=not headers, **tls)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception):
        self._server.should_exit = True
        self._thread.join()
