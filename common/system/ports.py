"""Whether a port of this machine is taken, by whom, and whether it can be."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import StudyError

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what listens there is asked on loopback)
_WATCH_S: Final = 0.2
_LISTENS: Final = "0A"  # in the kernel's tables (proc(5))


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


def holder(port: int) -> str:
    """Which process listens there, in words; of another user's nothing can be told."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
                if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{row[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(each.readlink()) in sockets for each in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()}) has it"
    return "a process that this user cannot see has it" if sockets else "no process listens there"


def await_free(
    address: tuple[str, int], *, program: str, setting: str, patience_s: float, say: Callable[[str], None]
) -> None:
    """Until nobody else listens there: what is ending may need a while.

    Raises StudyError that says who has the port of ``program``, which ``setting`` names.
    """
    host, port = address
    deadline, told = time.monotonic() + patience_s, False
    while (error := cannot_listen(address)) is not None:
        if time.monotonic() > deadline:
            raise StudyError(
                f"port {port} of {host}, where {program} is to listen, cannot be had: {error.strerror}; {holder(port)}",
                why=f"{program} has a port of its own, and without it nothing of the study comes through",
                fix=f"stop what uses it, or change it: {setting}",
            ) from error
        if not told:
            say(f"waiting up to {patience_s:g} s for port {port}: {holder(port)}")
            told = True
        time.sleep(_WATCH_S)
