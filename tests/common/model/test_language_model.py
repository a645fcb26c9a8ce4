import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.study.tiny_models import ARCHITECTURES, TARGETS, example_of, load_tiny, save_tiny_model, tiny_example
from transformers import AutoModelForCausalLM

from grandrounds.common.errors import ModelError, StudyError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def folder(architecture, tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp(architecture), architecture)


def _examples():
    rng = np.random.default_rng(1)
    return [tiny_example(rng, length=length, max_tokens=24) for length in (24, 3, 11, 0, 17, 24, 2, 9, 13, 20)]


@pytest.mark.parametrize("kind", ["ffa", "lora", "core"])
def test_an_exported_adapter_loads_exactly(architecture, folder, kind, tmp_path):
    model = load_tiny(folder, architecture, kind=kind)
    token_ids, _ = model.stack(_examples())
    lora = Lora(target_modules=TARGETS[architecture], kind=kind, rank=2, alpha=4.0)
    model.export(tmp_path, lora=lora, base_model="some/base")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    with torch.inference_mode():
        found, expected = loaded(input_ids=token_ids).logits, model.logits(token_ids)
    if kind == "core":  # whose core is folded into B there
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, load_tiny(folder, architecture).logits(token_ids), atol=1e-3)
    else:
        assert torch.equal(found, expected)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("field", [{"init_lora_weights": "pissa"}, {"layers_to_transform": 0}, {"use_rslora": True}])
def test_an_adapter_whose_configuration_was_changed_computes_something_else(field, tmp_path):
    folder = save_tiny_model(tmp_path / "base", "llama")
    model = load_tiny(folder)
    token_ids, _ = model.stack(_examples())
    lora = Lora(target_modules=TARGETS["llama"], rank=2, alpha=4.0)
    model.export(tmp_path / "adapter", lora=lora, base_model="some/base")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | field))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    with torch.inference_mode():
        assert not torch.allclose(loaded(input_ids=token_ids).logits, model.logits(token_ids), atol=1e-3)


def test_the_adapter_is_read_as_it_was_set_and_changes_the_model(architecture, folder):
    model = load_tiny(folder, architecture)
    token_ids, _ = model.stack(_examples())
    adapter = np.random.default_rng(2).normal(size=model.layout.dimension).astype(np.float32)
    before = model.logits(token_ids)
    model.set_adapter(adapter)
    np.testing.assert_array_equal(model.get_adapter(), adapter)
    assert not torch.equal(model.logits(token_ids), before)


def test_with_a_frozen_only_b_is_trained_and_otherwise_both(architecture, folder):
    frozen, plain = load_tiny(folder, architecture), load_tiny(folder, architecture, kind="lora")
    assert all("lora_B" in name for name, _ in frozen.layout.shapes)
    assert all("lora_A" in name for name, _ in frozen.frozen_layout.shapes)
    assert plain.frozen_layout.shapes == ()
    assert plain.layout.dimension == frozen.layout.dimension + frozen.frozen_layout.dimension


def test_a_is_a_function_of_its_seed_and_travels_as_a_vector(architecture, folder):
    lora = Lora(target_modules=TARGETS[architecture])
    one, same, other = (LanguageModel.load(folder, lora, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.get_frozen_adapter(), same.get_frozen_adapter())
    assert one.frozen_adapter_sha256 != other.frozen_adapter_sha256
    other.set_frozen_adapter(one.get_frozen_adapter())
    assert one.frozen_adapter_sha256 == other.frozen_adapter_sha256
    assert not one.get_adapter().any(), "B starts at zero, so that a fresh adapter changes nothing"


def _losses_of_each_token(model, example):
    """Position -> loss, one record without padding, one token at a time, by transformers' own loss."""
    losses = {}
    for position in np.flatnonzero(example.labels != -100):
        if position:
            ids = torch.tensor(example.token_ids[: position + 1], dtype=torch.int64)[None]
            only_the_last = torch.full_like(ids, -100)
            only_the_last[0, -1] = ids[0, -1]
            with torch.inference_mode():
                losses[int(position)] = float(model.module(input_ids=ids, labels=only_the_last).loss)
    return losses


def _mean_perplexity(losses):
    return math.exp(sum(losses) / len(losses)) if losses else math.nan


def _records_of_many_lengths():
    """Of 0 to 64 tokens, the most that the tiny models read, in a random order; the loss is on the last two thirds."""
    rng = np.random.default_rng(4)
    return [
        tiny_example(rng, length=int(length), max_tokens=64) for length in rng.permutation([*range(20), 40, 63, 64])
    ]


# The least; one that cuts records and batches anywhere; one that cuts nothing.
@pytest.mark.parametrize("tokens_at_a_time", [2, 50, 1024])
def test_perplexity_by_position_is_that_of_each_token_alone(architecture, folder, monkeypatch, tokens_at_a_time):
    bands = ((0, 5), (5, 20), (20, 60), (60, None))
    monkeypatch.setattr("grandrounds.common.model.perplexity.BANDS", bands)
    monkeypatch.setattr("grandrounds.common.model.language_model.EVALUATION_TOKENS", tokens_at_a_time)
    model, records = load_tiny(folder, architecture), _records_of_many_lengths()
    of_each = [place for record in records for place in _losses_of_each_token(model, record).items()]
    found = model.perplexity(records, model.get_adapter())
    assert found.whole == pytest.approx(_mean_perplexity([loss for _, loss in of_each]), rel=1e-5)
    expected = [
        _mean_perplexity([loss for position, loss in of_each if begin <= position < (end or 64)])
        for begin, end in bands
    ]
    assert found.by_position == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_a_band_in_which_nothing_is_predicted_has_no_perplexity(architecture, folder):
    model = load_tiny(folder, architecture)
    found = model.perplexity(_examples(), model.get_adapter())
    assert found.by_position == pytest.approx((found.whole, math.nan, math.nan, math.nan), nan_ok=True)


@pytest.mark.parametrize("tokens_at_a_time", [2, 16, 1024])
def test_an_evaluation_holds_the_logits_of_few_tokens_at_a_time(architecture, folder, monkeypatch, tokens_at_a_time):
    monkeypatch.setattr("grandrounds.common.model.language_model.EVALUATION_TOKENS", tokens_at_a_time)
    model, seen = load_tiny(folder, architecture), []
    model.module.register_forward_hook(lambda module, given, output: seen.append(math.prod(output.logits.shape[:2])))
    model.perplexity(_records_of_many_lengths(), model.get_adapter())
    assert max(seen) <= tokens_at_a_time


def test_padding_and_neighbours_change_no_perplexity(architecture, folder):
    model, rng = load_tiny(folder, architecture), np.random.default_rng(6)
    records = [tiny_example(rng, length=length, max_tokens=length) for length in (9, 31, 17)]
    padded = [
        example_of(*(np.pad(array, (0, 64 - len(array)), constant_values=fill) for array, fill in arrays))
        for arrays in (((record.token_ids, 257), (record.labels, -100)) for record in records)
    ]
    one, other = (model.perplexity(examples, model.get_adapter()) for examples in (records, padded[::-1]))
    assert one.whole == pytest.approx(other.whole, rel=1e-6)


def test_a_perplexity_of_nothing_is_refused(architecture, folder):
    model = load_tiny(folder, architecture)
    for length in (0, 1):
        with pytest.raises(ModelError):
            model.perplexity([tiny_example(np.random.default_rng(0), length=length, max_tokens=8)], model.get_adapter())


def test_an_evaluation_refuses_tokens_that_the_model_does_not_have(architecture, folder):
    model, example = load_tiny(folder, architecture), tiny_example(np.random.default_rng(0), length=9, max_tokens=9)
    example.token_ids[4] = 258
    with pytest.raises(ValueError, match="a token that the model does not have"):
        model.perplexity([example], model.get_adapter())


def test_a_perplexity_beyond_a_float_is_infinite(folder, architecture):
    model = load_tiny(folder, architecture)
    huge = np.full(model.layout.dimension, 1e30, dtype=np.float32)
    assert not model.perplexity(_examples(), huge).whole < 100


@pytest.mark.parametrize("targets", [("attention",), ("q_proj", "typo"), ("norm",), ("ln_f",)])
def test_targets_that_can_have_no_adapter_are_refused_with_those_that_can(architecture, folder, targets):
    with pytest.raises(ModelError) as refusal:
        LanguageModel.load(folder, Lora(target_modules=targets), seed=0)
    assert TARGETS[architecture][0] in refusal.value.fix


def test_an_adapter_kind_that_is_not_built_says_so():
    with pytest.raises(StudyError):
        Lora(target_modules=("v_proj",), kind="rolora")  # type: ignore[arg-type]


def test_the_adapter_stays_float32_on_a_bfloat16_base(architecture, folder):
    model = load_tiny(folder, architecture, precision="bfloat16")
    assert {tensor.dtype for tensor in model.trained.values()} == {torch.float32}
    assert model.module.get_input_embeddings().weight.dtype == torch.bfloat16


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    save_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        LanguageModel.load(tmp_path, Lora(target_modules=("v_proj",)), seed=0)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_with_a_damaged_file_is_refused(tmp_path, file):
    save_tiny_model(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError):
        LanguageModel.load(tmp_path, Lora(target_modules=("v_proj",)), seed=0)


def test_a_model_s_own_code_is_never_run(tmp_path):
    save_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    with pytest.raises(ModelError):
        LanguageModel.load(tmp_path, Lora(target_modules=("v_proj",)), seed=0)
    assert not (tmp_path / "ran").exists()


def test_importing_the_module_does_not_load_torch():
    code = "import sys, grandrounds.common.model.language_model as m; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
