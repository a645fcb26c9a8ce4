"""The peak memory of every process that some processes have started, by what each is for."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .peak_memory import most_resident_bytes

_LOOK_S: Final = 0.02
# What is in a process's command, and what the process is; the first that fits.
_KINDS: Final = (
    ("client.node.relay", "relay"),
    ("flower-supernode", "SuperNode"),
    ("flower-superlink", "SuperLink"),
    ("flower-superexec", "executor"),
    ("flwr-serverapp", "server app"),
    ("server_ops.gate", "gate"),
    (" client worker ", "worker"),
)


class ProcessMemory:
    """Looks at all descendants of the processes ``pids``, many times a second, while it is entered.

    ``peaks`` are bytes of resident memory by kind of process, the largest of all of a kind; supervisors are left out.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.peaks: dict[str, int] = {}
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            for pid in tuple(self._pids()):
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    status = Path(f"/proc/{pid}/status").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if kind := next((kind for part, kind in _KINDS if part in command), None):
                    self.peaks[kind] = max(self.peaks.get(kind, 0), most_resident_bytes(status))
            time.sleep(_LOOK_S)
