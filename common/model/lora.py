"""The adapter on a base model: which layers get it, and what it is before training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from ..errors import ModelError, StudyError
from .adapter import Vector
from .base_model import quiet
from .library_errors import library_errors
from .reading import layers_reached

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

_WHY: Final = "the adapter is attached to the layers that target_modules names"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter: ``B·A·alpha/rank`` is added to each target module (Hu et al. 2022).

    ``ffa``: A is public, drawn once and frozen, and B is trained (Sun et al. 2024, FFA-LoRA): the mean of B is the mean
    of the updates, and noise is not squared. ``lora``: A and B are trained. Others (RoLoRA) raise StudyError.
    ``layers``: only blocks of these numbers, from the first to the last, counted from 0.
    """

    target_modules: tuple[str, ...]
    layers: tuple[int, int] | None = None
    kind: Literal["ffa", "lora"] = "ffa"
    rank: int = 4
    alpha: float = 8.0

    @property
    def numbered(self) -> list[int] | None:
        """The numbers of the blocks that get an adapter; None: of all."""
        return None if self.layers is None else list(range(self.layers[0], self.layers[1] + 1))

    def __str__(self) -> str:
        among = "" if self.layers is None else f" of layers {self.layers[0]} to {self.layers[1]}"
        return f"rank {self.rank}, alpha {self.alpha:g}, on {', '.join(self.target_modules)}{among}"

    def __post_init__(self) -> None:
        if self.kind not in ("ffa", "lora"):
            raise StudyError(
                f"adapter kind {self.kind!r} is not built",
                why="which tensors are trained decides what is clipped and noised",
                fix="choose 'ffa' (A frozen, the default) or 'lora' (A and B trained)",
            )


def attach(base: Any, lora: Lora, *, seed: int) -> Any:
    """A peft model: ``base`` with a fresh adapter on the layers that text reaches, B zero, A drawn from ``seed``.

    Raises ModelError where a target names no such layer, where merging would break the model, and where peft refuses.
    """
    import peft

    adapter = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target_modules),
        layers_to_transform=lora.numbered,
        exclude_modules=_beside_the_text(base, lora.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        # Conv1D (GPT-2) keeps its weight transposed.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.modules()),
    )
    attaching = library_errors(
        f"peft attaches no adapter of {lora}",
        why=_WHY,
        fix="choose other target_modules, or other layers; those of the attention work in most models",
    )
    with attaching, quiet():
        module = peft.get_peft_model(base, adapter, autocast_adapter_dtype=True)
    _draw_a(module, seed)
    for name, parameter in module.named_parameters():
        if lora.kind == "ffa" and "lora_A" in name:
            parameter.requires_grad_(False)
    return module


def copy_tensors(source: Mapping[str, Vector], target: Mapping[str, "torch.Tensor"]) -> None:
    """Set tensors to the arrays of the same names."""
    import torch

    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(torch.from_numpy(source[name]))


def _draw_a(module: Any, seed: int) -> None:
    """Kaiming-uniform A, as peft's, from a generator whose stream is the same on every machine and version of torch."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    parameters = dict(module.named_parameters())
    for name in sorted(name for name in parameters if "lora_A" in name):
        shape = tuple(parameters[name].shape)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        copy_tensors({name: generator.uniform(-bound, bound, shape).astype(np.float32)}, {name: parameters[name]})


def _beside_the_text(base: Any, target_modules: Sequence[str]) -> list[str]:
    """The layers that ``target_modules`` names and text does not reach: those of a part for images, for example.

    Raises ModelError unless each target names linear layers that text reaches; peft passes over a name that matches
    nothing beside one that does. Raises it, too, where an adapter could not be merged: its layer's weight is another's.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    reached, beside, shared = layers_reached(base), [], _shared_weights(base)
    kinds = torch.nn.Linear | torch.nn.Conv1d | Conv1D
    linear = [name for name, module in base.named_modules() if isinstance(module, kinds)]
    for target in target_modules:
        named = [name for name in linear if name == target or name.endswith("." + target)]
        if reached.isdisjoint(named):
            free = (name for name in linear if name in reached and f"{name}.weight" not in shared)
            existing = sorted({name.rpartition(".")[2] for name in free})
            raise ModelError(
                f"no linear layer that text reaches in the model is called {target!r}",
                why=_WHY,
                fix=f"choose among {', '.join(existing)}",
            )
        for name in named:
            if f"{name}.weight" in shared:
                raise ModelError(
                    f"the weight of {name} is also that of {shared[f'{name}.weight']}",
                    why="whoever merges the adapter into the model would change both, and break it",
                    fix=f"leave {target!r} out of target_modules",
                )
        beside += [name for name in named if name not in reached]
    return beside


def _shared_weights(base: Any) -> dict[str, str]:
    """The names of parameters that are one with another of another name, each with that one's."""
    names: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(parameter.data_ptr(), []).append(name)
    return {name: others[others[0] == name] for others in names.values() if len(others) > 1 for name in others}
