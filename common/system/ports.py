"""Whether a port of this machine is taken, and whether it can be."""

import socket
from typing import Final

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what listens there is asked on loopback)


def listens(address: tuple[str, int]) -> bool:
    """Whether somebody on this machine takes connections there."""
    host, port = address
    try:
        with socket.create_connection((_EVERYWHERE.get(host, host), port), timeout=1):
            return True
    except OSError:
        return False


def cannot_listen(address: tuple[str, int]) -> OSError | None:
    """Why nobody can listen there now, if nobody can."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the programs do themselves
            probe.bind(address)
    except OSError as error:
        return error
    return None
