"""Of each architecture, gradients are each record's own and what is exported is usable, or it is refused and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.study.architectures import NAMES, save_architecture
from support.study.autograd import autograd_alone, worst_error
from support.study.tiny_models import tiny_example
from transformers import AutoModelForCausalLM

from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.errors import ModelError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora

TOKENS = 24
RNG = np.random.default_rng(7)
RECORDS = [tiny_example(RNG, length=length, max_tokens=TOKENS) for length in (24, 9)]
QV = ("q_proj", "v_proj")
ALL = "all-linear"
EXPERTS = "as one that routes to experts does"
AHEAD = "the model reads ahead"
NOT_OF_TEXT = "transformers has no causal language model"


@dataclass(frozen=True)
class Case:
    """What is adapted in an architecture, and the reason if that is refused."""

    name: str
    targets: tuple[str, ...] | str
    refused: str = ""


CASES = [
    Case("llama", QV),
    Case("llama", ALL),
    Case("llama", ("lm_head",)),
    Case("llama", ("embed_tokens", "v_proj", "lm_head")),
    Case("llama_tied", QV),
    Case("llama_tied", ("lm_head",), "the weight of lm_head is also that of"),
    Case("mistral", QV),
    Case("qwen2", QV),
    Case("qwen3", QV),
    Case("qwen3", ALL),
    Case("gemma", QV),
    Case("gemma", ("embed_tokens",), "the weight of model.embed_tokens is also that of"),
    Case("gemma_untied", ("embed_tokens",)),
    Case("gemma2", QV),
    Case("gemma3", QV),
    Case("gemma3", ALL),
    Case("medgemma", QV),
    Case("medgemma", ("language_model.layers.0.self_attn.q_proj",)),
    Case("medgemma", ALL),
    Case("gemma3n", QV),
    Case("gemma4", QV),
    Case("vaultgemma", QV),
    Case("phi", QV),
    Case("phi", ("dense",)),
    Case("phi3", ("qkv_proj",)),
    Case("phi3", ALL),
    Case("phi3", QV, "is called 'q_proj'"),
    Case("gpt2", ("c_attn",)),
    Case("gpt2", ALL),
    Case("gpt2", ("wpe",), "gradients of shape"),
    Case("gpt2", ("lm_head",), "the weight of lm_head is also that of"),
    Case("gpt_neox", ("query_key_value",)),
    Case("gpt_neox", ALL),
    Case("gpt_neo", QV),
    Case("gptj", QV),
    Case("opt", QV),
    Case("opt", ("fc1", "fc2"), "the model flattens the batch"),
    Case("opt", ALL, "the model flattens the batch"),
    Case("bloom", ("query_key_value",)),
    Case("falcon_rope", ("query_key_value",)),
    Case("falcon_alibi", ("query_key_value",)),
    Case("mpt", ("Wqkv",)),
    Case("biogpt", QV),
    Case("xglm", QV),
    Case("codegen", ("qkv_proj",)),
    Case("gpt_bigcode", ("c_attn",)),
    *(Case(name, QV) for name in ("granite", "olmo2", "olmo3", "smollm3", "stablelm", "starcoder2", "cohere2")),
    *(Case(name, QV) for name in ("glm4", "nemotron", "llama4_dense", "granite4_dense", "hunyuan")),
    Case("minicpm3", ("o_proj",)),
    Case("deepseek_v3_dense", ("o_proj",)),
    Case("mamba", ("in_proj",)),
    Case("mamba", ("x_proj", "in_proj")),
    Case("mamba", ("out_proj",), "incompatible with Mamba"),
    Case("mamba", ALL, "incompatible with Mamba"),
    Case("mamba", ("dt_proj",), "is called 'dt_proj'"),
    Case("mamba2", ("in_proj",)),
    Case("falcon_mamba", ("in_proj",)),
    Case("falcon_h1", QV),
    Case("falcon_h1", ("in_proj",)),
    Case("bamba", QV),
    Case("zamba2", QV),
    Case("zamba2", ("in_proj",)),
    Case("recurrent_gemma", QV),
    Case("recurrent_gemma", ("linear_x", "linear_y")),
    Case("lfm2", QV),
    Case("lfm2", ("in_proj",)),
    Case("qwen3_5", QV),
    Case("qwen3_5_vl", QV),
    Case("rwkv", ("key", "value")),
    Case("xlstm", ("q", "v")),
    Case("ctrl", ("Wq", "Wv")),
    Case("bert_decoder", ("query", "value")),
    Case("roformer_decoder", ("query", "value")),
    Case("bart", QV),
    Case("mixtral", QV, EXPERTS),
    Case("llama4_moe", ALL, EXPERTS),
    *(Case(name, QV, EXPERTS) for name in ("jamba", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4_moe", "llama4_vl")),
    Case("deepseek_v3_moe", ("o_proj",), EXPERTS),
    Case("qwen3_next", ("in_proj_qkvz",), EXPERTS),
    Case("bert", ("query", "value"), AHEAD),
    *(Case(name, ("query", "value"), AHEAD) for name in ("roberta", "xlm_roberta", "megatron_bert")),
    Case("xlnet", ("layer_1",), AHEAD),
    Case("t5", ("q", "v"), NOT_OF_TEXT),
    *(Case(name, QV, NOT_OF_TEXT) for name in ("qwen2_5_vl", "llava", "mistral3_vl")),
    Case("mllama", QV, "that it cannot load once it is saved"),
    Case("reformer", ("query", "value"), "the model cannot read text"),
]


def adapted(folder: Path, lora: Lora, **options: Any) -> LanguageModel:
    """As in the middle of training: every trained number has moved."""
    model = LanguageModel.load(folder, lora, seed=3, **options)
    model.set_adapter(np.random.default_rng(5).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    return model


def test_every_architecture_has_a_case() -> None:
    assert {case.name for case in CASES} == set(NAMES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.targets}")
def test_an_architecture_works_whole_or_is_refused_with_the_reason(case: Case, tmp_path: Path) -> None:
    folder = save_architecture(tmp_path / "base", case.name)
    lora = Lora(target_modules=case.targets, kind="lora", rank=2, alpha=4.0)
    if case.refused:
        with pytest.raises(ModelError) as refusal:
            sampler = GradSampler(LanguageModel.load(folder, lora, seed=3), [Shape(TOKENS, 4)])
            sampler.gradients(RECORDS)
        assert case.refused in refusal.value.diagnostics()
        return
    model = adapted(folder, lora)
    expected = [autograd_alone(model, record) for record in RECORDS]  # by peft's own layers, which follow
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    assert worst_error(sampler.gradients(RECORDS), expected) < 1e-4
    if model.module.base_model.model.supports_gradient_checkpointing:
        model.enable_gradient_checkpointing()
        assert worst_error(sampler.gradients(RECORDS), expected) < 1e-4

    model.export(tmp_path / "adapter", lora=lora, base_model=str(folder))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    token_ids = torch.from_numpy(RECORDS[0].token_ids.astype(np.int64))[None]
    with torch.inference_mode():
        logits = model.logits(token_ids)
        torch.testing.assert_close(loaded(input_ids=token_ids, use_cache=False).logits, logits)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=token_ids, use_cache=False).logits, logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "gemma3", "phi", "phi3"])
def test_in_bfloat16_its_gradients_agree_within_that_precision(name: str, tmp_path: Path) -> None:
    folder = save_architecture(tmp_path, name)
    lora = Lora(target_modules=ALL, kind="lora", rank=2, alpha=4.0)
    model, exactly = adapted(folder, lora, precision="bfloat16"), adapted(folder, lora)
    alone, exact = ([autograd_alone(each, record) for record in RECORDS] for each in (model, exactly))
    gradients = GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS)
    assert gradients.dtype == torch.float32
    # As near to what autograd has in this precision as a few roundings; no further from the truth than that is.
    assert worst_error(gradients, alone) < worst_error(alone, exact)
    assert worst_error(gradients, exact) < 2 * worst_error(alone, exact)
