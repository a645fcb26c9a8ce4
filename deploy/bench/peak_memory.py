"""A process's peak resident memory, as its kernel counts it, or a GPU's that its tensors take."""

import contextlib
import resource
from pathlib import Path


def forget_peak(gpu: str | None = None) -> int:
    """Have the peak counted anew from what is held now, which is returned in bytes."""
    if gpu is not None:
        import torch  # not loaded where memory without it is measured

        torch.cuda.reset_peak_memory_stats(gpu)
        return torch.cuda.memory_allocated(gpu)
    with contextlib.suppress(OSError):  # where it cannot, the peak of what went before stands in for it
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes(gpu: str | None = None) -> int:
    """The most that this process ever held, in bytes, interpreter and libraries included; or of a GPU, since then."""
    if gpu is not None:
        import torch

        return torch.cuda.max_memory_allocated(gpu)
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where getrusage counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux its peak includes that of the process which started this one.
    return most_resident_bytes(status.read_text())


def most_resident_bytes(status: str) -> int:
    """The peak in what Linux has as a process's ``status``; 0 for one that has no memory, as one that has ended."""
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
