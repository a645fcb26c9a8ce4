"""The file that tells peft of an adapter's shape: it follows from the study to the last byte."""

import json
from collections.abc import Iterable
from typing import Any, Final

from .lora import Lora, longest_first

# What peft puts before the names of a model's layers, and what follows in those of their tensors.
WRAPPED: Final = "base_model.model."
_TENSOR: Final = ".lora_"


def adapter_config(lora: Lora, *, base_model: str, fan_in_fan_out: bool, tensors: Iterable[str]) -> bytes:
    """adapter_config.json of a trained adapter on ``base_model``, with ``tensors`` of these names.

    Where a pattern chose the layers, their names are given, as the tensors have them: nobody who loads the adapter has
    to run the pattern, or would find more layers by it than text reaches.

    peft makes another adapter of the same numbers under many of its settings; those that are left out have peft's
    defaults, which are off. ``fan_in_fan_out`` (Conv1D keeps its weight transposed) decides nothing: peft corrects it
    by the kind of the layer that it finds.
    """
    config: dict[str, Any] = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": float(lora.alpha),
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.rank,
        "revision": None,
        "target_modules": sorted(
            set(_layers(tensors) if isinstance(lora.target_modules, str) else lora.target_modules)
        ),
        "task_type": "CAUSAL_LM",
    }
    if lora.layers is not None and not isinstance(lora.target_modules, str):
        config["layers_to_transform"] = lora.numbered
    if lora.rank_pattern:
        config["rank_pattern"] = longest_first(lora.rank_pattern)
    if lora.alpha_pattern:
        config["alpha_pattern"] = longest_first(lora.alpha_pattern)
    if lora.rslora:
        config["use_rslora"] = True
    if lora.dora:
        config["use_dora"] = True
    return json.dumps(dict(sorted(config.items())), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _layers(tensors: Iterable[str]) -> list[str]:
    return [tensor.removeprefix(WRAPPED).rpartition(_TENSOR)[0] for tensor in tensors]
