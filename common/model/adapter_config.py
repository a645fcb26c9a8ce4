"""The file that tells peft of an adapter's shape: it follows from the study to the last byte."""

import json
from typing import Any

from .lora import Lora


def adapter_config(lora: Lora, *, base_model: str, fan_in_fan_out: bool) -> bytes:
    """adapter_config.json of a trained adapter on ``base_model``.

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
        "target_modules": sorted(set(lora.target_modules)),
        "task_type": "CAUSAL_LM",
    }
    if lora.layers is not None:
        config["layers_to_transform"] = lora.numbered
    return json.dumps(dict(sorted(config.items())), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
