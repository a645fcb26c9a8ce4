"""The processes of a site's further devices: started, given the model, and asked for their part of each step."""

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from ...common.data.buckets import bucket_lengths
from ...common.errors import GrandRoundsError, ModelError
from ...common.model.adapter import Vector
from ...common.model.devices import PROCESSORS, Checkpointing, Sharding, free_bytes, open_device, within_memory
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from ...common.privacy.mechanism import NoNoise
from ...common.study.study import Study
from ...common.system.privileges import keep_memory_private
from ...common.system.processes import end_with_parent
from .dp_sgd import DpSgd, Share
from .grad_samples import GradSampler, Shape
from .physical_batch import MachineSampler
from .ranks import PATIENCE_S, Failed, RankLost, Ranks
from .sharding import base_bytes, shard
from .step_watch import StepWatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Of a device's free memory, what the whole base may take before it is sharded where nothing is said.
_SHARE_OF_MEMORY: Final = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class _Beginning:
    """What a rank begins with: the model's folder and its hash, what is public of its adapter, and how it computes.

    ``store`` is the file in which ranks of a base that is sharded find each other.
    """

    base: Path
    sha256: str
    frozen: Vector
    study: Study
    checkpointing: Checkpointing
    store: Path | None
    threads: int


def start_ranks(devices: Sequence[str]) -> Ranks:
    """A process for each of the ``devices`` but the first, which is this process's, as rank 0 sees them.

    They end when what is returned is no longer there, or this process. Each runs as this process's user and in its
    networks, and is a program that was started anew: nothing of this one's memory is in it.
    """
    context = get_context("spawn")
    links = []
    for number in range(1, len(devices)):
        link, theirs = context.Pipe()
        name = f"grandrounds rank {number}"
        context.Process(target=_run, args=(theirs, number, tuple(devices)), name=name, daemon=True).start()
        theirs.close()
        links.append(link)
    return Ranks(links, devices=devices)


def begin(
    ranks: Ranks,
    model: LanguageModel,
    *,
    base: Path,
    study: Study,
    checkpointing: Checkpointing,
    sharding: Sharding,
) -> MachineSampler:
    """A study's gradients on all ranks' devices; ``model`` is rank 0's, of the folder ``base``, which others load too.

    Where its base may be sharded, ``model`` is on processors. The others load theirs one after another: beside what
    stays, the machine's memory holds one base at most. Raises ModelError, and RankLost.
    """
    is_sharded = sharding == "on" or (sharding == "auto" and _is_large(model, ranks.devices))
    whole = base_bytes(model) / 2**30
    lies = f"in parts of {whole / ranks.count:.2g} GiB" if is_sharded else f"whole on each, {whole:.2g} GiB"
    ranks.told = (f"units are divided over {', '.join(ranks.devices)}; the base is {lies} (shard: {sharding})",)
    beginning = _Beginning(
        base=base,
        sha256=model.folder_sha256,
        frozen=model.get_frozen_adapter(),
        study=study,
        checkpointing=checkpointing,
        store=ranks.folder / "store" if is_sharded else None,
        threads=max(1, torch.get_num_threads() // ranks.count),
    )
    ranks.ask([beginning] * (ranks.count - 1))
    return _begun(ranks, beginning, model)


def _is_large(model: LanguageModel, devices: Sequence[str]) -> bool:
    """Whether the base, on processors still, takes much of some GPU's memory."""
    if devices[0] == PROCESSORS or model.device.type != PROCESSORS:
        return False
    free = min(free_bytes(open_device(device)) for device in devices)
    return base_bytes(model) > _SHARE_OF_MEMORY * free


def _begun(ranks: Ranks, beginning: _Beginning, model: LanguageModel | None = None) -> MachineSampler:
    """The sampler of one of the ranks, which begin together. Raises ModelError."""
    device = open_device(ranks.devices[ranks.number])
    if device.type == "cpu":
        torch.set_num_threads(beginning.threads)  # as many on each, since a sum may follow from how it is divided
    mesh = None if beginning.store is None else _mesh(ranks, device, beginning.store)
    ranks.is_sharded = mesh is not None
    for turn in range(ranks.count):
        if turn == ranks.number:
            model = model or _loaded(beginning, PROCESSORS if mesh else ranks.devices[turn])
            model.set_frozen_adapter(beginning.frozen)
            with within_memory(device):
                model.module.to(device) if mesh is None else _shard(ranks, beginning.study, model, mesh, device)
        ranks.everyones(turn)
    assert model is not None  # noqa: S101 (each had its turn)
    with within_memory(device):
        return MachineSampler(beginning.study, model, checkpointing=beginning.checkpointing, ranks=ranks)


def _loaded(beginning: _Beginning, device: str) -> LanguageModel:
    what, base, sha256 = beginning.study.model, beginning.base, beginning.sha256
    return LanguageModel.load(base, what.lora, seed=0, precision=what.precision, device=device, sha256=sha256)


def _shard(ranks: Ranks, study: Study, model: LanguageModel, mesh: "DeviceMesh", device: torch.device) -> None:
    """Leave a part of the base here, and have every pass through it made by all ranks together."""
    tokens = bucket_lengths(study.data.max_tokens)[0]
    padding = GradSampler(model, [Shape(tokens, 1)])  # which judges the model: of parts, nothing could be told
    ranks.accompany = lambda: padding.gradients([Example.padding(tokens)])
    shard(model, mesh, device)
    model.together = ranks.batch


def _mesh(ranks: Ranks, device: torch.device, store: Path) -> "DeviceMesh":
    """All ranks, connected over this machine's loopback alone. Raises ModelError where there is none.

    What connects them knows no passwords: whoever else is in this network could take a rank's place, as they are put
    together. All that would come to them is numbers of the base model, and nothing that they send moves a unit's
    integers out of their bound. A worker's service has a network of its own, in which nobody else is.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
        try:
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=dist.FileStore(str(store), ranks.count),  # type: ignore[attr-defined]
                rank=ranks.number,
                world_size=ranks.count,
                timeout=timedelta(seconds=PATIENCE_S),
                device_id=device if on_gpu else None,
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the processes of several devices do not reach each other ({str(error).splitlines()[0]})",
                why="of a base that is sharded, they gather each block over loopback",
                fix="have loopback up in the worker's network, and its service's file written by this version; or set "
                'shard = "off" in site.toml, which needs none',
            ) from error
    return init_device_mesh(device.type, (ranks.count,))


def _run(link: Connection, number: int, devices: Sequence[str]) -> None:
    """A rank's process: it begins when it is told to, sums what it is dealt of each step, and ends with rank 0.

    It has no mechanism, draws no noise, and says nothing of an error in a step but its type.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is rank 0's to answer
    keep_memory_private()
    end_with_parent()
    ranks = Ranks([link], number=number, devices=devices)
    sampler: MachineSampler | None = None
    order = None
    try:
        while True:
            order = ranks.await_order()
            if isinstance(order, Share) and sampler is not None:
                _sum(sampler, order)
            else:
                sampler = _begun(ranks, order)
    except (EOFError, RankLost):
        return
    except Exception as error:
        said = (error.what, error.why, error.fix) if isinstance(error, GrandRoundsError) else None
        link.send(Failed(kind=type(error).__name__, diagnosis=said if isinstance(order, _Beginning) else None))


def _sum(sampler: MachineSampler, share: Share) -> None:
    sampler.model.set_adapter(share.adapter)
    watch = StepWatch(sampler.model.device if share.is_watched else None)
    step = DpSgd(sampler=sampler, lattice=share.lattice, mechanism=NoNoise(), integers=share.integers)
    total = step.sum_share(share.units, watch)
    sampler.ranks.add_up(total, watch.figures(share.lattice, noise_stddev=0) if share.is_watched else None)
