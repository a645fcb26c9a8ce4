"""The adapter is on the layers that text reaches, and what is released can be used as people use it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, PeftModel
from support.study.tiny_models import VOCABULARY, save_tiny_model, tiny_config
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from grandrounds.common.errors import ModelError
from grandrounds.common.model.adapter_config import adapter_config
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora, orthonormal

TOKENS = torch.arange(20)[None]


def refused(folder, *targets):
    with pytest.raises(ModelError) as refusal:
        LanguageModel.load(folder, Lora(target_modules=targets), seed=0)
    return refusal.value


@pytest.fixture(scope="module")
def of_images_and_text(tmp_path_factory):
    """As MedGemma is: its part for images has layers q_proj and v_proj, too."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "sliding_window": 8,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=1,
        boi_token_index=250,
        eoi_token_index=251,
        image_token_index=252,
    )
    model = Gemma3ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("gemma3")
    model.save_pretrained(folder)
    return folder


def test_of_a_model_of_images_and_text_the_part_for_text_is_adapted(of_images_and_text):
    model = LanguageModel.load(of_images_and_text, Lora(target_modules=("q_proj", "v_proj")), seed=0)
    assert len(model.layout.shapes) == 4
    assert not any("vision" in name for name, _ in model.layout.shapes)
    assert model.vocabulary_size == VOCABULARY


def test_a_layer_that_no_text_reaches_is_no_target(of_images_and_text):
    assert "q_proj" in refused(of_images_and_text, "out_proj").fix


def test_its_adapter_loads_merges_and_is_saved_without_a_change(of_images_and_text, tmp_path):
    lora = Lora(target_modules=("q_proj", "v_proj"))
    model = LanguageModel.load(of_images_and_text, lora, seed=0)
    model.set_adapter(np.random.default_rng(0).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    model.export(tmp_path / "adapter", lora=lora, base_model=str(of_images_and_text))
    with torch.inference_mode():
        expected = model.logits(TOKENS)
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
        torch.testing.assert_close(loaded(input_ids=TOKENS).logits, expected)
        loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        torch.testing.assert_close(merged(input_ids=TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("tied")
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.2)
    model.save_pretrained(folder)
    return folder


def test_a_layer_whose_weight_is_also_another_s_is_no_target(tied):
    refusal = refused(tied, "v_proj", "lm_head")
    assert "lm_head" in refusal.what and "embed_tokens" in refusal.what
    assert "lm_head" not in refused(tied, "typo").fix


def test_without_that_refusal_merging_would_break_the_model(tied, monkeypatch, tmp_path):
    monkeypatch.setattr("grandrounds.common.model.target_layers._shared_weights", lambda base: {})
    model = LanguageModel.load(tied, Lora(target_modules=("lm_head",)), seed=0)
    model.set_adapter(np.random.default_rng(0).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    model.export(tmp_path, lora=Lora(target_modules=("lm_head",)), base_model=str(tied))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), tmp_path)
    with torch.inference_mode():
        expected = adapted(input_ids=TOKENS).logits
        assert not torch.allclose(adapted.merge_and_unload()(input_ids=TOKENS).logits, expected, atol=0.1)


def test_an_untied_head_is_a_target(tmp_path):
    save_tiny_model(tmp_path)
    LanguageModel.load(tmp_path, Lora(target_modules=("lm_head",)), seed=0)


def test_what_peft_refuses_is_told_in_its_words(tmp_path):
    MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    ).save_pretrained(tmp_path)
    assert "Mamba" in refused(tmp_path, "out_proj").what
    assert "dt_proj" in refused(tmp_path, "in_proj", "dt_proj").what


def test_layers_choose_the_blocks_that_get_an_adapter_as_peft_does(tmp_path):
    save_tiny_model(tmp_path)
    every, upper = (
        LanguageModel.load(tmp_path, Lora(target_modules=("q_proj", "v_proj"), layers=layers), seed=0)
        for layers in (None, (1, 1))
    )
    assert upper.layout.dimension * 2 == every.layout.dimension
    assert all(".1." in name for name in upper.trained)
    assert upper.differences_from(Lora(target_modules=("q_proj", "v_proj"), layers=(1, 1), alpha=8.0)) == []
    lower = Lora(target_modules=("q_proj", "v_proj"), layers=(0, 0), alpha=8.0)
    assert "is in none of the blocks [0]" in every.differences_from(lower)[0]
    config = json.loads(adapter_config(lower, base_model="x", fan_in_fan_out=False, tensors=()))
    assert config["layers_to_transform"] == [0] and list(config) == sorted(config)


def test_layers_that_the_model_does_not_have_are_refused(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ModelError, match="of layers 7 to 9"):
        LanguageModel.load(tmp_path, Lora(target_modules=("q_proj",), layers=(7, 9)), seed=0)


@given(rows=st.integers(1, 9), more=st.integers(0, 40), seed=st.integers(0, 99))
def test_orthonormal_rows_are_so_to_rounding(rows, more, seed):
    found = orthonormal(np.random.default_rng(seed).uniform(-1, 1, (rows, rows + more)), of="A")
    np.testing.assert_allclose(found @ found.T, np.eye(rows), atol=1e-9)


def test_an_orthonormal_a_has_the_norm_of_a_drawn_one_and_is_the_same_on_every_machine(tmp_path):
    save_tiny_model(tmp_path)
    drawn, orthogonal = (
        LanguageModel.load(tmp_path, Lora(target_modules=("q_proj", "embed_tokens"), rank=3, a_init=a_init), seed=7)
        for a_init in ("uniform", "orthonormal")
    )
    for name, a in orthogonal.tensors.items():
        if "_A" in name:
            expected = 1 / 3 if "embedding" not in name else VOCABULARY / 3  # of each row: of [-b, b], b²/3 a number
            np.testing.assert_allclose(a @ a.T, expected * np.eye(3), atol=1e-4)
            assert 0.6 < np.square(a).sum() / np.square(drawn.tensors[name]).sum() < 1.6
    assert orthogonal.frozen_adapter_sha256 == "1e0cb05688f32b978d5fee9c7756e2a6d90f4f9e3f4f3a3a272b7069c2b4b4f9"


def test_more_rows_than_numbers_cannot_be_orthogonal(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ModelError, match="17 rows of 16 numbers"):
        LanguageModel.load(tmp_path, Lora(target_modules=("q_proj",), rank=17, a_init="orthonormal"), seed=0)


def test_a_core_stands_behind_no_embedding(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ModelError, match="embed_tokens is no linear layer, and a core"):
        LanguageModel.load(tmp_path, Lora(target_modules=("embed_tokens",), kind="core"), seed=0)
