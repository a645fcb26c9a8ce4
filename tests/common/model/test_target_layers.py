"""A study names the layers of its adapter in a list, by a pattern, or all linear ones; peft loads what is exported."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.study.tiny_models import ARCHITECTURES, save_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from grandrounds.common.errors import ModelError
from grandrounds.common.model.adapter import vector_sha256
from grandrounds.common.model.adapter_file import read_tensors, trained_sha256, vector_of
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora, _row_norms

TOKENS = torch.arange(20)[None]
QV = r".*[.](q|v)_proj|.*c_attn"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def load(folder, **fields):
    return LanguageModel.load(folder, Lora(**{"target_modules": QV, "rank": 2, **fields}), seed=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear", "layers": (1, 1)},
        {"target_modules": "all-linear", "rank_pattern": {"0.mlp.down_proj": 1, "0.mlp.c_proj": 1}},
        {"rslora": True, "alpha_pattern": {"v_proj": 1.0, "c_attn": 1.0}},
        {"dora": True},
        {"dora": True, "kind": "lora", "rslora": True},
    ],
)
def test_what_is_exported_loads_exactly_and_merges(folders, tmp_path, architecture, fields):
    kept = {"llama": ("down_proj", "v_proj"), "gpt2": ("c_proj", "c_attn")}[architecture]
    fields = {
        name: {layer: number for layer, number in value.items() if layer.endswith(kept)}
        if isinstance(value, dict)
        else value
        for name, value in fields.items()
    }
    lora = Lora(**{"target_modules": QV, "rank": 2, **fields})
    model = LanguageModel.load(folders[architecture], lora, seed=3)
    assert model.differences_from(lora) == []
    vector = np.random.default_rng(5).normal(1, 0.3, model.layout.dimension).astype(np.float32)
    model.set_adapter(vector)
    model.export(tmp_path, lora=lora, base_model="x")
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    np.testing.assert_array_equal(vector_of(read_tensors(weights), kind=lora.kind, trained=True), vector)
    assert trained_sha256(weights, kind=lora.kind) == vector_sha256(vector)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[architecture]), tmp_path)
    with torch.inference_mode():
        expected = model.logits(TOKENS)
        assert torch.equal(loaded(input_ids=TOKENS).logits, expected)
        torch.testing.assert_close(loaded.merge_and_unload()(input_ids=TOKENS).logits, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", QV])
def test_the_layers_are_those_that_peft_takes(folders, architecture, targets):
    base = AutoModelForCausalLM.from_pretrained(folders[architecture])
    theirs = get_peft_model(base, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    layers, found = (
        [name for name, layer in module.named_modules() if hasattr(layer, "lora_A")]
        for module in (theirs, load(folders[architecture], target_modules=targets).module)
    )
    assert found == layers != []


def test_a_fresh_adapter_of_any_kind_changes_nothing(folders):
    plain, dora = load(folders["llama"]), load(folders["llama"], dora=True)
    torch.testing.assert_close(dora.logits(TOKENS), plain.logits(TOKENS))
    magnitudes = [name for name, _ in dora.layout.shapes if name.endswith("lora_magnitude_vector")]
    assert len(magnitudes) == 4 and dora.layout.unflatten(dora.get_adapter())[magnitudes[0]].all()


def test_norms_of_rows_have_the_bits_that_their_definition_has():
    weight = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-1, 2)[:, None]
    exactly = [math.sqrt(math.fsum(float(number) ** 2 for number in row)) for row in weight]
    assert _row_norms(weight).tolist() == [float(np.float32(norm)) for norm in exactly]
    assert _row_norms(weight.bfloat16()).dtype == torch.float32


def test_a_row_of_zeros_has_no_direction_and_is_refused_under_dora(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3] = 0
    model.save_pretrained(tmp_path)
    load(tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.v_proj has a row of zeros"):
        load(tmp_path, dora=True)


def test_the_longer_of_two_names_decides_on_rank_and_scaling(folders):
    lora: dict[str, Any] = {
        "rank_pattern": {"v_proj": 3, "layers.1.self_attn.v_proj": 4},
        "alpha_pattern": {"q_proj": 6.0},
    }
    model = load(folders["llama"], **lora)
    ranks = {name.split("model.layers.")[-1]: shape[1] for name, shape in model.layout.shapes}
    assert [ranks[f"{block}.self_attn.{name}_proj.lora_B.weight"] for block in (0, 1) for name in "qv"] == [2, 3, 2, 4]
    assert model.differences_from(Lora(target_modules=QV, rank=2, **lora)) == []
    assert "v_proj has rank 3, not 2" in model.differences_from(Lora(target_modules=QV, rank=2))[1]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"rslora": True}, "is scaled by 4.0, not by"),
        ({"dora": True}, "has no magnitude of its own"),
        ({"target_modules": ".*q_proj"}, "v_proj is none of .*q_proj"),
        ({"alpha_pattern": {"v_proj": 1.0}}, "v_proj is scaled by 4.0, not by 0.5"),
    ],
)
def test_a_model_of_another_adapter_is_told_from_the_study_s(folders, other, difference):
    expected = Lora(**{"target_modules": QV, "rank": 2, **other})
    assert any(difference in told for told in load(folders["llama"]).differences_from(expected))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"target_modules": "v_proj|q_proj"}, r"What to do: .* whole ones, as model\.layers\.\d\.\w+\.\w+"),
        ({"target_modules": ".*(embed_tokens|v_proj)", "dora": True}, "embed_tokens is no linear layer, and DoRA"),
        ({"rank_pattern": {"o_proj": 3}}, "names 'o_proj', and no layer with an adapter is"),
        ({"alpha_pattern": {"typo": 3.0}}, "names 'typo', and no layer with an adapter is"),
        ({"target_modules": "v_proj", "rank_pattern": {"v_proj": 3}}, "is there for an adapter of rank 2"),
        ({"target_modules": r"(.|\w|[.])*(?<=X)"}, "takes more than"),
    ],
)
def test_what_stands_for_no_layer_is_refused_and_so_is_a_pattern_that_does_not_end(folders, fields, complaint):
    with pytest.raises(ModelError) as refusal:
        load(folders["llama"], **fields)
    assert re.search(complaint, refusal.value.diagnostics())


def test_a_pattern_takes_no_head_that_is_tied(tmp_path):
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert not any("lm_head" in name for name, _ in load(tmp_path, target_modules="all-linear").layout.shapes)
    with pytest.raises(ModelError, match=r"the weight of lm_head is also that of model\.embed_tokens"):
        load(tmp_path, target_modules=".*(head|v_proj)")


def test_whoever_loads_the_adapter_runs_no_pattern(folders, tmp_path):
    lora = Lora(target_modules=QV, rank=2, layers=(1, 1))
    LanguageModel.load(folders["llama"], lora, seed=0).export(tmp_path, lora=lora, base_model="x")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.1.self_attn.{name}_proj" for name in "qv"]
    assert "layers_to_transform" not in config


@pytest.mark.parametrize("kind", ["ffa", "lora"])
def test_an_adapter_on_an_embedding_begins_with_a_drawn_and_b_zero(folders, kind):
    model = load(folders["llama"], target_modules=("embed_tokens",), kind=kind)
    tensors = {**model.trained, **model._frozen}
    drawn, zero = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{letter}"] for letter in "AB")
    assert not zero.any() and 0.3 < drawn.var() < 0.4, "as if a linear layer had read numbers of variance one"
    assert (kind == "ffa") == (not drawn.requires_grad)


def test_a_model_that_carries_another_adapter_is_refused(folders):
    config = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
    beside, above, renamed = (AutoModelForCausalLM.from_pretrained(folders["llama"]) for _ in range(3))
    two = get_peft_model(beside, config)
    two.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for module, carried in (
        (two, "default, other"),
        (get_peft_model(get_peft_model(above, config), config), "default, default"),
        (get_peft_model(renamed, config, adapter_name="own"), "own"),
    ):
        with pytest.raises(ModelError, match=f"the model carries the adapters {carried}, where one is trained"):
            LanguageModel(module)
