"""A base model's frozen weights in parts, one on each device of a machine: PyTorch's FSDP2."""

from typing import TYPE_CHECKING, Final

import torch

from ...common.errors import ModelError
from ...common.model.language_model import LanguageModel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_FIX: Final = 'set shard = "off" in site.toml: each device then holds the whole base'


def base_bytes(model: LanguageModel) -> int:
    """The memory that a model's frozen weights take."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters() if not p.requires_grad)


def shard(model: LanguageModel, mesh: "DeviceMesh", device: torch.device) -> None:
    """Leave on ``device`` this process's part of the frozen weights of a model on processors.

    Each block is gathered while it computes, forward and backward, and bit for bit what it was (Zhao et al. 2023,
    "PyTorch FSDP"; ``fully_shard``). The adapter stays whole on every device, so that gradients of it leave none: what
    the processes of the ``mesh`` send each other are numbers of the base model, and nothing else. Every process does
    this, and from then on every forward and backward pass, as often as the others.

    To be called on a model that was found to be trainable (``GradSampler``), since of a part nothing can be told.
    Raises ModelError where the weights cannot be parted.
    """
    from torch.distributed.fsdp import fully_shard

    module, blocks = model.module, model.blocks
    adapter = {p for name, p in module.named_parameters() if p.requires_grad or "lora_" in name}
    if not blocks:
        raise ModelError(
            "transformers says of no layer of this model that it is one of several like blocks",
            why="a base model is sharded block by block, or each device would gather all of it at once",
            fix=_FIX,
        )
    if not all(p.is_floating_point() for p in module.parameters()):
        raise ModelError(
            "a base model in 4 bits is not sharded",
            why="what its numbers mean is kept beside them, and would be lost with the rest of a tensor",
            fix=_FIX,
        )
    for part in (*blocks, module):  # from the inside out
        fully_shard(part, mesh=mesh, ignored_params=adapter)
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
