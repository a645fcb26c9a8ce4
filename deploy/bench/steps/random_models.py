"""Models of common shapes with random weights, made where they are measured: no download, no file."""

import copy
from typing import Any, Final

import torch
from torch import nn

from ....common.errors import ModelError
from ....common.model.base_model import Precision, quiet
from ....common.model.devices import open_device, within_memory
from ....common.model.language_model import LanguageModel
from ....common.model.lora import Lora, attach
from ....common.model.nf4 import nf4_config, settle
from ....common.model.target_layers import ALL_LINEAR

PREFIX: Final = "random:"
_SIZES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    # Llama 3.2 1B
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    # Llama 2 7B
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
NAMES: Final = tuple(PREFIX + size for size in _SIZES)


def random_model(name: str, lora: Lora, *, precision: Precision, device: str) -> LanguageModel:
    """A Llama of the size ``name`` with a fresh adapter, drawn on ``device``. Raises ModelError."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    size = _SIZES.get(name.removeprefix(PREFIX))
    if size is None:
        raise ModelError(
            f"there is no random model {name}",
            why="its shape would have to be guessed",
            fix=f"choose {', '.join(NAMES)}",
        )
    place = open_device(device)
    config = LlamaConfig(**size, max_position_embeddings=8192)
    with quiet(), within_memory(place), torch.device(place):
        torch.manual_seed(0)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        if precision == "nf4":
            _make_nf4(base, place)
    return LanguageModel(attach(base, lora, seed=0).to(place))


def stacked_model(*, dimension: int, width: int, rank: int, device: str) -> LanguageModel:
    """A Llama with A and B trained on each linear layer, of blocks enough for about ``dimension`` numbers.

    All these layers share one weight [width, width], so that many of them take little memory.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    place = open_device(device)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 128),
    )
    with quiet(), torch.device(place):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config).eval()
    module = attach(base, Lora(target_modules=ALL_LINEAR, kind="lora", rank=rank), seed=0)
    (block,) = base.model.layers
    linear = [layer.base_layer for layer in block.modules() if hasattr(layer, "lora_A")]
    for layer in linear:
        layer.weight = linear[0].weight
    frozen = {id(parameter): parameter for parameter in block.parameters() if not parameter.requires_grad}
    config.num_hidden_layers = max(1, dimension // (len(linear) * 2 * rank * width))
    base.model.layers = nn.ModuleList(copy.deepcopy(block, dict(frozen)) for _ in range(config.num_hidden_layers))
    return LanguageModel(module.to(place))


def _make_nf4(base: Any, place: torch.device) -> None:
    """Quantise all linear layers but the head, one after another, as ``nf4_config`` says."""
    config = nf4_config()
    import bitsandbytes

    for parent in list(base.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer is base.get_output_embeddings():
                continue
            quantised = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=config.bnb_4bit_compute_dtype,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
                device="meta",
            )
            quantised.weight = bitsandbytes.nn.Params4bit(
                layer.weight.data,
                requires_grad=False,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
                module=quantised,
            )
            setattr(parent, name, quantised.to(place))
    settle(base)
