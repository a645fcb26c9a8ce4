"""Which layers of a model get an adapter: those that a study names, that text reaches, and that can be merged."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ..errors import ModelError
from .reading import layers_reached

if TYPE_CHECKING:
    from .lora import Lora

WHY_TARGETS: Final = "the adapter is attached to the layers that target_modules names"
ALL_LINEAR: Final = "all-linear"

# A pattern comes from a study's author, and one that goes astray in a name would take longer than the study.
_SECONDS_A_NAME: Final = 0.2


def is_called(layer: str, name: str) -> bool:
    """Whether ``name`` is a layer's, whole or the last parts of it.

    >>> is_called("model.layers.0.self_attn.q_proj", "self_attn.q_proj"), is_called("model.kq_proj", "q_proj")
    (True, False)
    """
    return f".{layer}".endswith(f".{name}")


def named(target_modules: tuple[str, ...] | str) -> str:
    """The layers as a study names them, in one line."""
    return target_modules if isinstance(target_modules, str) else ", ".join(target_modules)


def block_of(layer: str) -> int | None:
    """The number of the block that a layer is in, as peft takes it: the first in its name.

    >>> block_of("model.layers.12.mlp.down_proj"), block_of("lm_head")
    (12, None)
    """
    return next((int(part) for part in layer.split(".") if part.isdecimal()), None)


def matches(pattern: str, layer: str) -> bool:
    """Whether a regular expression matches a layer's whole name. Raises ModelError where that takes too long.

    >>> matches(r".*[.](q|v)_proj", "model.layers.0.self_attn.v_proj")
    True
    """
    import regex

    try:
        return regex.fullmatch(pattern, layer, timeout=_SECONDS_A_NAME) is not None
    except TimeoutError:
        raise ModelError(
            f"the regular expression {pattern!r} takes more than {_SECONDS_A_NAME:g} s for the name of one layer",
            why=f"{WHY_TARGETS}, and sites would wait for it",
            fix="put no repetition into another, as (a+)+, or name the layers in a list",
        ) from None


def target_layers(base: Any, lora: "Lora") -> tuple[list[str], list[str]]:
    """The names of the layers that get an adapter, and of those that text does not reach: a part for images', perhaps.

    Raises ModelError unless each name stands for layers that text reaches and that can have such an adapter, where peft
    would pass over a name that matches nothing beside one that does. Raises it, too, where an adapter could not be
    merged: its layer's weight is another's.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = torch.nn.Linear | Conv1D
    every = lora.target_modules == ALL_LINEAR
    kinds = linear if every else linear | torch.nn.Conv1d | torch.nn.Embedding
    layers = {name: module for name, module in base.named_modules() if isinstance(module, kinds)}
    reached, head, blocks = layers_reached(base), base.get_output_embeddings(), lora.numbered
    read = [name for name, module in layers.items() if name in reached and not (every and module is head)]
    chosen = [name for name in read if lora.names(name) and (blocks is None or block_of(name) in blocks)]
    shared = _shared_weights(base)

    for name in () if isinstance(lora.target_modules, str) else lora.target_modules:
        if not any(is_called(layer, name) for layer in read):
            raise ModelError(
                f"no linear layer or embedding that text reaches in the model is called {name!r}",
                why=WHY_TARGETS,
                fix=f"choose among {_kinds(layer for layer in read if f'{layer}.weight' not in shared)}",
            )
    if not chosen:
        raise ModelError(
            f"no linear layer or embedding that text reaches is there for an adapter of {lora}",
            why=WHY_TARGETS,
            fix=f"name others: a list has last parts of names, a pattern is of whole ones, as {max(read, key=len)}"
            if read
            else "choose another model",
        )
    for name in {**lora.rank_pattern, **lora.alpha_pattern}:
        if not any(is_called(layer, name) for layer in chosen):
            raise ModelError(
                f"rank_pattern or alpha_pattern names {name!r}, and no layer with an adapter is called so",
                why="peft would pass over it, and the layer that is meant would have the rank or alpha of all others",
                fix=f"choose among {_kinds(chosen)}, or leave it out",
            )
    for layer in chosen:
        last = layer.rpartition(".")[2]
        if f"{layer}.weight" in shared:
            raise ModelError(
                f"the weight of {layer} is also that of {shared[f'{layer}.weight']}",
                why="whoever merges the adapter into the model would change both, and break it",
                fix=f"leave {last!r} out of target_modules",
            )
        if lora.dora and not isinstance(layers[layer], linear):
            raise ModelError(
                f"{layer} is no linear layer, and DoRA is built for no other",
                why="each record's own gradient of a magnitude is computed where a layer multiplies by a matrix",
                fix=f"leave dora out, or {last!r} out of target_modules",
            )
    return chosen, [name for name in layers if name not in reached]


def _kinds(layers: Iterable[str]) -> str:
    return ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))


def _shared_weights(base: Any) -> dict[str, str]:
    """The names of parameters that are one with another of another name, each with that one's."""
    names: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(parameter.data_ptr(), []).append(name)
    return {name: others[others[0] == name] for others in names.values() if len(others) > 1 for name in others}
