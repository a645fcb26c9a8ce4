"""What is loaded from a folder is what its files say, and can be trained; if not, the reason given is the cause."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.study.tiny_models import VOCABULARY, save_tiny_model, tiny_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    MambaConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MptConfig,
    Qwen2_5_VLConfig,
    RwkvConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from grandrounds.common.errors import ModelError
from grandrounds.common.model.base_model import load_base, positions

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 257,
}
VISION = {"hidden_size": 16, "intermediate_size": 32}


def refused(folder):
    with pytest.raises(ModelError) as refusal:
        load_base(folder, precision="float32")
    return refusal.value.diagnostics()


def change_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_encoder_is_refused_for_reading_ahead(tmp_path):
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path)
    assert "later tokens" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_checkpoint_that_lacks_a_weight_is_refused_by_the_weight_s_name(tmp_path, name):
    save_tiny_model(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.pop(name))
    assert name in refused(tmp_path)


def test_without_that_refusal_each_load_would_be_another_model(tmp_path):
    save_tiny_model(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    one, other = (LlamaForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_tied_weights_are_not_missing(tmp_path):
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    load_base(tmp_path, precision="float32")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(tmp_path, name, number):
    save_tiny_model(tmp_path)

    def damage(tensors):
        tensors[name].view(-1)[-1] = number  # of the embeddings: the padding token's, which no text has

    change_weights(tmp_path, damage)
    said = refused(tmp_path)
    assert name in said and "not finite" in said


@pytest.mark.parametrize(
    "field",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "awq"}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
    ],
)
def test_a_quantised_checkpoint_is_refused_for_being_quantised(tmp_path, field):
    save_tiny_model(tmp_path)
    change_config(tmp_path, **field)
    assert "quantised" in refused(tmp_path)


def test_a_model_of_images_and_text_that_is_no_causal_one_is_refused_for_that(tmp_path):
    Qwen2_5_VLConfig(text_config=SIZES, vision_config={"depth": 1, "hidden_size": 16}).save_pretrained(tmp_path)
    said = refused(tmp_path)
    assert "qwen2_5_vl" in said and "vision_config" in said


def test_a_model_of_two_parts_is_refused_for_that(tmp_path):
    T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=16, num_layers=1)).save_pretrained(tmp_path)
    assert "t5" in refused(tmp_path)


def test_a_part_that_could_not_be_loaded_once_it_is_merged_and_saved_is_refused(tmp_path):
    text = {**SIZES, "num_key_value_heads": 1, "cross_attention_layers": [1], "bos_token_id": 256, "eos_token_id": 256}
    vision = {
        **VISION,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
    }
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=252)
    MllamaForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "once it is saved" in refused(tmp_path)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config"),
        (lambda folder: change_config(folder, model_type="not-yet-known"), "not-yet-known"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: change_config(folder, hidden_size=8), "in another shape"),
    ],
)
def test_what_the_library_says_of_a_folder_is_told(tmp_path, damage, cause):
    save_tiny_model(tmp_path)
    damage(tmp_path)
    assert cause in refused(tmp_path).partition("Why it matters")[0].replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny_config("llama"), 64),
        (tiny_config("gpt2"), 64),
        (MptConfig(max_seq_len=32), 32),
        (RwkvConfig(context_length=48), 48),
        (MambaConfig(), None),
    ],
)
def test_how_many_tokens_can_be_read_is_known_whatever_the_configuration_calls_it(config, expected):
    assert positions(config) == expected
