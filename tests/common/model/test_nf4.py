"""A base model in 4 bits: which weights are, what they become, and that gradients through them are whole."""

import builtins
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.study.tiny_models import load_tiny, save_tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from grandrounds.common.errors import ModelError
from grandrounds.common.model.base_model import load_base, load_widened
from grandrounds.common.model.nf4 import is_nf4, nf4_config, plain_weight, unseen

# Dettmers et al. 2023 (QLoRA), appendix E.
QUANTILES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
ARCHITECTURES = ("llama", "gpt2")
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name, width=64) for name in ARCHITECTURES}


def nearest(weight):
    """A weight whose blocks of 64 numbers are each the nearest quantile times the largest, in bfloat16."""
    blocks = weight.bfloat16().double().reshape(-1, 64).numpy()
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    chosen = np.abs(blocks[..., None] / largest[..., None] - QUANTILES).argmin(axis=-1)
    return torch.from_numpy(QUANTILES[chosen] * largest).reshape(weight.shape).bfloat16()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_weight_but_the_head_s_becomes_the_nearest_of_the_published_quantiles(folders, architecture):
    files = load_file(folders[architecture] / "model.safetensors")
    base = load_base(folders[architecture], precision="nf4")
    quantised = {name: layer for name, layer in base.named_modules() if is_nf4(layer)}
    linear = {name for name, layer in base.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    assert quantised.keys() == linear - {"lm_head"} and len(quantised) >= 8
    for name, layer in quantised.items():
        stored = files[f"{name}.weight"]
        # Blocks run along what a row of the product is made of, which GPT-2's files have as columns.
        expected = nearest(stored.T.contiguous()).T if architecture == "gpt2" else nearest(stored)
        assert torch.equal(plain_weight(layer), expected), name
    others = [parameter for parameter in base.parameters() if parameter.is_floating_point()]
    assert {parameter.dtype for parameter in others} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_widened_model_has_the_very_numbers_in_float32(folders, architecture, precision):
    held, wide = (load(folders[architecture], precision=precision) for load in (load_base, load_widened))
    numbers = dict(wide.named_parameters())
    assert {each.dtype for each in numbers.values()} == {torch.float32}
    assert not any(is_nf4(layer) for layer in wide.modules())
    for name, parameter in held.named_parameters():
        layer = held.get_submodule(name.rpartition(".")[0])
        expected = plain_weight(layer) if name.endswith(".weight") and is_nf4(layer) else parameter
        assert torch.equal(numbers[name], expected.float()), name


def gradient(model):
    """The adapter's, of the sum of the squares of all logits of some tokens."""
    loss = model.module(input_ids=torch.arange(12)[None]).logits.float().square().sum()
    found = torch.autograd.grad(loss, list(model.trained.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


def evaluated(model):
    with torch.inference_mode():
        model.module(input_ids=torch.arange(12)[None])
    return model


def test_a_gradient_is_the_same_before_and_after_an_evaluation(folders):
    model = load_tiny(folders["llama"], precision="nf4")
    before = gradient(model)
    assert torch.equal(gradient(evaluated(model)), before)


def test_without_that_care_gradients_would_lack_what_goes_through_an_evaluated_layer(folders):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes lays weights out anew on processors with AVX512-BF16 alone")
    model = load_tiny(folders["llama"], precision="nf4")
    before = gradient(model)
    for layer in model.module.modules():
        if is_nf4(layer):
            layer.support_avx512bf16_for_cpu = True
            assert not is_nf4(layer), "no such layer is taken for one that can be trained through"
    assert (gradient(evaluated(model)) - before).norm() > 0.1 * before.norm()


def test_numbers_that_are_not_finite_and_weights_that_are_missing_are_found_in_4_bits_too(tmp_path):
    folder = save_tiny_model(tmp_path, width=64)
    whole, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    damaged = {**whole, name: whole[name].clone().index_fill_(0, torch.tensor(3), float("nan"))}
    for tensors, said in ((damaged, "not finite"), ({k: v for k, v in whole.items() if k != name}, "no weights for")):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=said) as refusal:
            load_base(folder, precision="nf4")
        assert name in refusal.value.what


def test_a_model_that_keeps_its_weights_in_other_layers_is_refused_with_the_share(tmp_path):
    with pytest.raises(ModelError, match=r"4 bits of \d\d% of the model's weights alone"):
        load_base(save_tiny_model(tmp_path, "mixtral", width=64), precision="nf4")


def test_rows_in_which_a_block_does_not_end_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"q_proj has rows of 80 weights, which is no multiple of 64"):
        load_base(save_tiny_model(tmp_path, width=80), precision="nf4")


def test_without_that_refusal_processors_would_multiply_by_other_weights():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    for columns, tells in ((128, False), (80, True)):
        weight = torch.randn(8, columns)
        found = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=False))
        assert tells == bool((found - nearest(weight)).norm() > 0.1 * weight.norm()) or not _AVX512


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="not installed") as refusal:
        nf4_config()
    assert "grandrounds[nf4]" in refusal.value.fix


def test_other_precisions_do_not_load_bitsandbytes(folders, monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    for precision in ("float32", "bfloat16"):
        assert load_tiny(folders["llama"], precision=precision).precision == precision
    assert "bitsandbytes" not in sys.modules
    with unseen(), pytest.raises(ImportError):
        import bitsandbytes  # noqa: F401


def test_a_library_that_is_there_and_cannot_be_loaded_is_told(monkeypatch):
    import_ = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "bitsandbytes":
            raise OSError("libcudart.so: cannot open shared object file")
        return import_(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ModelError, match=r"bitsandbytes is installed and cannot be loaded \(OSError\)"):
        nf4_config()
