"""A process's peak resident memory, as its kernel counts it."""

import contextlib
import resource
from pathlib import Path


def forget_peak() -> int:
    """Let the kernel count the peak anew from what is held now, which is returned in bytes."""
    with contextlib.suppress(OSError):  # where it cannot, the peak of what went before stands in for it
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """The most that this process ever held, in bytes, interpreter and libraries included."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where getrusage counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux its peak includes that of the process which started this one.
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
