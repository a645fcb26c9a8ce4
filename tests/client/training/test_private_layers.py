"""Every kind of adapter that a study can choose has each record's own gradient, as autograd has of it alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.lora.dora import DoraLinearLayer
from support.study.autograd import autograd_alone, worst_error
from support.study.tiny_models import ARCHITECTURES, TARGETS, save_tiny_model, tiny_example

from grandrounds.client.training import private_layers
from grandrounds.client.training.batch_invariance import independent_shapes
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.private_layers import PrivateMagnitude
from grandrounds.common.errors import ModelError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora

TOKENS = 24
RNG = np.random.default_rng(7)
RECORDS = [tiny_example(RNG, length=length, max_tokens=TOKENS) for length in (24, 3, 11)]
RECORDS[0].token_ids[9] = 257  # the padding token, of which PyTorch trains no embedding


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def adapted(folder, lora, *, load=LanguageModel.load, precision="float32"):
    """As in the middle of training: every trained number has moved."""
    model = load(folder, lora, seed=3, precision=precision)
    moved = np.random.default_rng(5).normal(0, 0.3, model.layout.dimension)
    model.set_adapter((model.get_adapter() + moved).astype(np.float32))
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["ffa", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_dora_each_gradient_is_that_of_its_record_alone(folders, architecture, kind, checkpointing):
    lora = Lora(target_modules=TARGETS[architecture], kind=kind, rank=2, rslora=True, dora=True)
    model, untouched = (adapted(folders[architecture], lora) for _ in range(2))
    if checkpointing:
        model.enable_gradient_checkpointing()
    gradients = GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS)
    assert any(isinstance(layer, PrivateMagnitude) for layer in model.module.modules())
    assert worst_error(gradients, [autograd_alone(untouched, record) for record in RECORDS]) < 1e-5


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "nf4"), ("gpt2", "nf4"), ("llama", "bfloat16")])
def test_under_dora_on_a_base_of_less_precision_gradients_agree_within_it(tmp_path, architecture, precision):
    folder = save_tiny_model(tmp_path, architecture, width=64)
    lora = Lora(target_modules=TARGETS[architecture], rank=2, dora=True)
    exactly = adapted(folder, lora, load=LanguageModel.load_widened, precision=precision)
    model, untouched = (adapted(folder, lora, precision=precision) for _ in range(2))
    gradients = GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS)
    assert {gradients.dtype, *(tensor.dtype for tensor in model.trained.values())} == {torch.float32}
    alone, exact = ([autograd_alone(each, record) for record in RECORDS] for each in (untouched, exactly))
    # A few roundings of a number of eight bits; and no further from the exact gradient than autograd itself.
    assert worst_error(gradients, alone) < 2**-5
    assert worst_error(gradients, exact) < 2 * worst_error(alone, exact)


def test_left_to_opacus_magnitudes_are_refused(folders, monkeypatch):
    monkeypatch.delitem(private_layers._PRIVATE, DoraLinearLayer)
    model = adapted(folders["llama"], Lora(target_modules=("v_proj",), rank=2, dora=True))
    with pytest.raises(ModelError, match="no gradient"):
        GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS)


def test_an_adapter_on_every_linear_layer_the_head_and_the_embedding_has_each_record_s_own_gradients(folders):
    for lora in (
        Lora(target_modules="all-linear", kind="lora", rank=2, rank_pattern={"down_proj": 3}),
        Lora(target_modules=("lm_head",), rank=2),
        Lora(target_modules=("embed_tokens",), kind="lora", rank=2),
    ):
        model, untouched = adapted(folders["llama"], lora), adapted(folders["llama"], replace(lora))
        gradients = GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS)
        assert worst_error(gradients, [autograd_alone(untouched, record) for record in RECORDS]) < 1e-5


@pytest.mark.parametrize(
    "lora",
    [
        Lora(target_modules=("v_proj", "down_proj"), rank=2, dora=True),
        Lora(target_modules=("embed_tokens", "lm_head"), kind="lora", rank=2),
    ],
    ids=str,
)
def test_records_leave_one_another_alone_to_the_last_bit_and_so_share_batches(folders, lora):
    model, shape = LanguageModel.load(folders["llama"], lora, seed=3), Shape(TOKENS, 4)
    assert independent_shapes(model, [shape]) == (shape,)


def test_a_layer_that_mixed_records_would_be_noticed(folders, monkeypatch):
    leave = private_layers._leave
    monkeypatch.setattr(private_layers, "_leave", lambda *left: leave(left[0], left[1].cumsum(0)))
    model = LanguageModel.load(folders["llama"], Lora(target_modules=("embed_tokens",), rank=2), seed=3)
    assert independent_shapes(model, [Shape(TOKENS, 4)]) == (Shape(TOKENS, 1),)
