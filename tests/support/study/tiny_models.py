"""Tiny random models on disk, Llama-like and GPT-2-like, with a tokenizer of bytes: no network, milliseconds a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from grandrounds.common.model.example import NO_LOSS, Example
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Kind, Lora

torch.set_num_threads(1)  # a second one costs more than it gives on such models

VOCABULARY = 258  # all bytes, an end-of-text and a padding token
POSITIONS = 64
ARCHITECTURES = ("llama", "gpt2")
TARGETS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "opt": ("fc1",), "mixtral": ("v_proj",)}


def tiny_config(architecture: str, width: int = 16) -> Any:
    """``width`` of the hidden states; nf4 takes 64 or a multiple of it."""
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
    hidden = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    match architecture:
        case "llama":
            return LlamaConfig(
                **sizes, **hidden, intermediate_size=2 * width, num_key_value_heads=1, max_position_embeddings=POSITIONS
            )
        case "gpt2":
            return GPT2Config(**sizes, n_embd=width, n_layer=2, n_head=2, n_positions=POSITIONS)
        case "opt":
            return OPTConfig(
                **sizes, **hidden, ffn_dim=2 * width, word_embed_proj_dim=width, max_position_embeddings=POSITIONS
            )
        case "mixtral":
            return MixtralConfig(
                **sizes,
                **hidden,
                intermediate_size=2 * width,
                num_key_value_heads=1,
                num_local_experts=2,
                max_position_embeddings=POSITIONS,
            )
    raise ValueError(architecture)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that every text has tokens and comes back from them."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_tiny_model(folder: Path, architecture: str = "llama", *, width: int = 16) -> Path:
    """Save model and tokenizer into ``folder``; weights large enough that a few steps change the loss."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, width))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # as the other files are
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load_tiny(
    folder: Path,
    architecture: str = "llama",
    *,
    kind: Kind = "ffa",
    load: Callable[..., LanguageModel] = LanguageModel.load,
    **options: Any,
) -> LanguageModel:
    """A saved tiny model with an adapter that is not zero, as in the middle of training."""
    lora = Lora(target_modules=TARGETS[architecture], kind=kind, rank=2, alpha=4.0)
    model = load(folder, lora, seed=3, **options)
    if kind == "core":  # whose B is zero until it is set
        frozen = np.random.default_rng(6).normal(0, 0.3, model.frozen_layout.dimension)
        model.set_frozen_adapter(frozen.astype(np.float32))
    model.set_adapter(np.random.default_rng(5).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    return model


def example_of(token_ids: NDArray[np.int32], labels: NDArray[np.int32]) -> Example:
    return Example(token_ids=token_ids, labels=labels)


def tiny_example(rng: np.random.Generator, *, length: int, max_tokens: int) -> Example:
    """``length`` random tokens on the left of ``max_tokens``; the first third has no label, as a prompt."""
    token_ids = np.full(max_tokens, 257, dtype=np.int32)
    token_ids[:length] = rng.integers(0, 256, length)
    labels = np.full(max_tokens, NO_LOSS, dtype=np.int32)
    labels[length // 3 : length] = token_ids[length // 3 : length]
    return example_of(token_ids, labels)
