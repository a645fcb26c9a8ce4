"""Where a model computes: on processors, or on a GPU whose arithmetic repeats itself to the last bit."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..errors import ModelError
from ..schema import Spelt

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

PROCESSORS: Final = "cpu"
# Whether activations are computed again in the backward pass; auto: where memory is short.
Checkpointing = Literal["auto", "on", "off"]
# Whether each of several devices holds a part of the base model, or all of it; auto: a part where all is much.
Sharding = Literal["auto", "on", "off"]
_NAME: Final = r"^(cpu|cuda(:[0-9]{1,3})?)$"
Device = Annotated[str, Spelt(_NAME, 'needs "cpu", "cuda" or, of several, "cuda:1"')]


def _listed(given: Any) -> Any:
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _together(names: tuple[str, ...]) -> tuple[str, ...]:
    """Devices that can compute parts of one step. Of processors, there may be several processes, one a socket."""
    numbers = [name.partition(":")[2] or "0" for name in names if name != PROCESSORS]
    if numbers and len(numbers) < len(names):
        raise ValueError("needs processors or GPUs alone: a patient's gradient would have other bits on the others")
    if len({int(number) for number in numbers}) < len(numbers):
        raise ValueError("needs each GPU once")
    return names


# One or several: of several, each computes a part of a step.
Devices = Annotated[tuple[Device, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_together)]
_CGROUP: Final = Path("/sys/fs/cgroup")
_WHY: Final = "the model computes where site.toml or --device says, and nowhere else"


def open_device(name: str) -> "torch.device":
    """The device of a name (``cpu``, ``cuda``, ``cuda:N``), tried by a product of matrices. Raises ModelError.

    On a GPU, PyTorch is held to kernels that give the same bits each time ("Reproducibility" in its notes; of cuBLAS,
    "Results reproducibility"), in float32 without its shortened form: what a record's gradient is must not depend on
    the order in which threads end.
    """
    import torch

    if not re.fullmatch(_NAME, name):
        raise ModelError(f"{name!r} is no device", why=_WHY, fix="write cpu, cuda or, of several GPUs, cuda:1")
    if name == PROCESSORS:
        return torch.device(name)
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise ModelError(
            f"the installed torch {torch.__version__} cannot use a GPU",
            why=_WHY,
            fix="install the build of the same version for the machine's CUDA, as pytorch.org says, or choose cpu",
        )
    if not torch.cuda.is_available():
        raise ModelError(
            "no GPU can be used here",
            why=_WHY,
            fix="see that nvidia-smi lists one for this user, and that its driver is new enough for CUDA "
            f"{torch.version.cuda}; in a container or a batch job, have a GPU given to it; or choose cpu",
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    try:
        device = torch.device("cuda", torch.device(name).index or 0)
        probe = torch.ones(8, 8, device=device)
        torch.cuda.synchronize(probe.matmul(probe).device)
    except RuntimeError as error:
        raise ModelError(
            f"{name} cannot be used ({str(error).splitlines()[0]})",
            why=_WHY,
            fix=f"this process sees {torch.cuda.device_count()} of the machine's GPUs, counted from 0: choose one that "
            "is free, or cpu",
        ) from error
    return device


@contextmanager
def within_memory(device: "torch.device") -> Iterator[None]:
    """Raises ModelError where what is done inside needs more memory than a GPU has."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the model and a physical batch do not fit into the memory of {torch.cuda.get_device_name(device)}",
            why="a record whose gradient cannot be computed counts as zero, and the site would contribute noise alone",
            fix="give this process a GPU of its own or a larger one, choose cpu, or ask the study's author for a "
            "smaller training.physical_batch or data.max_tokens",
        ) from error


def described(names: Sequence[str]) -> str:
    """What computes under the names of devices, in words. Raises ModelError where one cannot be used.

    >>> described(["cpu", "cpu"])
    'processors, processors'
    """
    return ", ".join(map(_described, names))


def _described(name: str) -> str:
    if name == PROCESSORS:
        return "processors"
    import torch

    device = open_device(name)
    free, memory = torch.cuda.mem_get_info(device)
    gibibytes = f"{free / 2**30:.0f} of {memory / 2**30:.0f} GiB free"
    return f"{torch.cuda.get_device_name(device)} ({device}, {gibibytes}; torch {torch.__version__})"


def peak_memory_bytes(device: "torch.device") -> int:
    """The most of a GPU's memory that this process held in tensors; 0 on processors."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free_bytes(device: "torch.device") -> int:
    """Memory that is free for tensors: of a GPU, or of this machine as far as this process may have it."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    lines = dict(line.split(":") for line in _read(Path("/proc/meminfo")).splitlines())
    machine = int(lines["MemAvailable"].split()[0]) << 10 if "MemAvailable" in lines else sys.maxsize
    limit, used = (_read(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    return min(machine, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else machine


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # another system than Linux, or one without control groups
        return ""
