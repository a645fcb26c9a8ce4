import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from support.study.made_tensors import MadeTensors
from support.study.numpy_lattice import integers_of
from support.study.tiny_models import ARCHITECTURES, VOCABULARY, load_tiny, save_tiny_model, tiny_example
from transformers import AutoModelForCausalLM

from grandrounds.client.training import grad_samples
from grandrounds.client.training.grad_samples import GradSampler, Shape, loss_gradients
from grandrounds.client.training.private_layers import PrivateLinear
from grandrounds.common.errors import ModelError
from grandrounds.common.model.example import NO_LOSS, Example
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.privacy.mechanism import Lattice
from grandrounds.deploy.bench.steps.kinds import sequence_losses

TOKENS = 24
RNG = np.random.default_rng(7)
RECORDS = [tiny_example(RNG, length=length, max_tokens=TOKENS) for length in (24, 3, 11, 17, 24, 6)]
NEIGHBOURS = [*RECORDS[1:], Example.padding(TOKENS), tiny_example(RNG, length=1, max_tokens=TOKENS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in (*ARCHITECTURES, "opt", "mixtral")}


def autograd_alone(model, example):
    """The gradient [d] by plain autograd of transformers' own loss: one record, without padding or batch."""
    length = int(np.flatnonzero(example.labels != NO_LOSS).max()) + 1
    token_ids = torch.tensor(example.token_ids[:length], dtype=torch.int64)[None]
    labels = torch.tensor(example.labels[:length], dtype=torch.int64)[None]
    loss = model.module(input_ids=token_ids, labels=labels).loss
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.trained.values()))])


def worst_error(gradients, expected):
    """The largest error of a row, relative to the row's norm."""
    return max(float((row - wanted).norm() / wanted.norm()) for row, wanted in zip(gradients, expected, strict=True))


def gradients_alone(folder, architecture, **options):
    model = load_tiny(folder, architecture, **options)  # with peft's own layers, which no sampler has touched
    return [autograd_alone(model, example) for example in RECORDS]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["ffa", "lora", "core"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_gradient_is_that_of_its_record_alone(folders, architecture, kind, checkpointing):
    model = load_tiny(folders[architecture], architecture, kind=kind)
    if checkpointing:
        model.enable_gradient_checkpointing()
    sampler = GradSampler(model, [Shape(TOKENS, 8)])
    passes = []
    first = next(layer for layer in model.module.modules() if isinstance(layer, PrivateLinear))
    first.register_forward_pre_hook(lambda *_: passes.append(first))
    gradients = sampler.gradients(RECORDS)
    assert gradients.shape == (len(RECORDS), model.layout.dimension)
    assert gradients.dtype == torch.float32
    assert worst_error(gradients, gradients_alone(folders[architecture], architecture, kind=kind)) < 1e-5
    assert len(passes) == (2 if checkpointing else 1), "once more when its block is recomputed"


@pytest.mark.parametrize("kind", ["ffa", "lora", "core"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_opacus_s_hooks(folders, architecture, kind):
    model = load_tiny(folders[architecture], architecture, kind=kind)
    hooked = load_tiny(folders[architecture], architecture, kind=kind)
    hooked.module.train()  # the hooks do nothing otherwise; the model has no dropout left
    wrapped = GradSampleModule(hooked.module, loss_reduction="sum", strict=False)
    token_ids, labels = model.stack(RECORDS)
    sequence_losses(wrapped(input_ids=token_ids, use_cache=False).logits, labels).sum().backward()
    expected = torch.cat([parameter.grad_sample.flatten(1) for parameter in hooked.trained.values()], dim=1)
    gradients = GradSampler(model, [Shape(TOKENS, len(RECORDS))]).gradients(RECORDS)
    assert worst_error(gradients, expected) < 1e-6


def test_a_loss_normalised_over_the_batch_is_noticed(folders):
    model = load_tiny(folders["llama"])
    GradSampler(model, [Shape(TOKENS, len(RECORDS))]).gradients(RECORDS)
    token_ids, labels = model.stack(RECORDS)
    model.module(input_ids=token_ids, labels=labels).loss.backward()
    by_batch = torch.cat([parameter.grad_sample.flatten(1) for parameter in model.trained.values()], dim=1)
    assert worst_error(by_batch * len(RECORDS), gradients_alone(folders["llama"], "llama")) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_a_time", [1, 3 * VOCABULARY, 1 << 20])
def test_a_loss_s_gradient_takes_the_place_of_the_logits_whatever_is_worked_on_at_a_time(dtype, at_a_time, monkeypatch):
    monkeypatch.setitem(grad_samples._AT_A_TIME, "cpu", at_a_time)
    examples = [*RECORDS, NEIGHBOURS[-1]]
    labels = torch.tensor(np.stack([example.labels for example in examples]), dtype=torch.int64)
    logits = 9 * torch.randn(len(examples), TOKENS, VOCABULARY, generator=torch.manual_seed(0)).to(dtype)
    leaf = logits.clone().requires_grad_()
    sequence_losses(leaf, labels).sum().backward()
    gradients = loss_gradients(logits, labels)
    assert gradients.data_ptr() == logits.data_ptr()
    assert gradients.dtype == dtype
    assert not gradients[-1].any()
    torch.testing.assert_close(gradients, leaf.grad, rtol=2e-5 if dtype == torch.float32 else 2**-7, atol=1e-8)


def test_a_model_that_needs_its_logits_to_go_back_is_refused_and_not_computed_wrongly(folders):
    model = load_tiny(folders["llama"])
    logits = model.logits
    model.logits = lambda token_ids: torch.tanh(logits(token_ids))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="no gradient of what it predicts"):
        GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS[:2])
    model.logits = lambda token_ids: 30 * torch.tanh(logits(token_ids) / 30)  # type: ignore[method-assign]  # as Gemma 2
    assert GradSampler(model, [Shape(TOKENS, 4)]).gradients(RECORDS[:2]).any()


def test_a_record_without_a_target_has_a_zero_gradient(folders):
    sampler = GradSampler(load_tiny(folders["llama"]), [Shape(TOKENS, 4)])
    gradients = sampler.gradients([NEIGHBOURS[-1], RECORDS[0], Example.padding(TOKENS)])
    assert not gradients[0].any()
    assert gradients[1].any()
    assert not gradients[2].any()


def test_gradients_do_not_add_up_over_batches(folders):
    sampler = GradSampler(load_tiny(folders["llama"]), [Shape(TOKENS, 4)])
    assert torch.equal(sampler.gradients(RECORDS[:3]), sampler.gradients(RECORDS[:3]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_layer_s_gradients_are_made_where_those_of_the_batch_lie_and_nowhere_before(folders, checkpointing):
    model = load_tiny(folders["llama"], kind="lora")
    if checkpointing:
        model.enable_gradient_checkpointing()
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    with MadeTensors() as made:
        gradients = sampler.gradients(RECORDS[:3])
    shapes = {(4, *parameter.shape) for parameter in model.trained.values()}
    places = {tensor.untyped_storage().data_ptr() for tensor in made.tensors if tensor.shape in shapes}
    assert places == {gradients.untyped_storage().data_ptr()}
    assert all(parameter.grad_room is None for parameter in model.trained.values()), "what is read is given free"


@pytest.mark.parametrize("room", [None, "given"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_layer_applied_twice_adds_up_both_uses(checkpointing, room):
    torch.manual_seed(0)
    place = torch.full((3, 7, 5, 5), torch.nan)[:, 1] if room else None
    plain = torch.nn.Linear(5, 5, bias=False)
    private: Any = copy.deepcopy(plain)
    private.__class__ = PrivateLinear
    private.weight.grad_sample, private.weight.grad_room = None, place
    inputs = torch.randn(3, 4, 5)

    def twice(layer, x):
        return layer(torch.tanh(layer(x)))

    if checkpointing:
        torch.utils.checkpoint.checkpoint(twice, private, inputs, use_reentrant=False).sum().backward()
    else:
        twice(private, inputs).sum().backward()
    expected = [torch.autograd.grad(twice(plain, row).sum(), plain.weight)[0] for row in inputs]
    torch.testing.assert_close(private.weight.grad_sample, torch.stack(expected))
    assert room is None or private.weight.grad_sample is place
    assert private.weight.grad is None


def with_bias(folder):
    """LoRA layers with a bias, which only Opacus's hooks handle."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    lora = peft.LoraConfig(r=2, target_modules=["v_proj"], lora_bias=True, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = LanguageModel(peft.get_peft_model(base, lora))
    model.set_adapter(np.random.default_rng(5).normal(0, 0.3, model.layout.dimension).astype(np.float32))
    return model


def test_other_trained_layers_are_left_to_opacus_and_agree_too(folders):
    model = with_bias(folders["llama"])
    expected = [autograd_alone(model, example) for example in RECORDS]
    for _ in range(2):  # a second sampler of the same model adds no second hooks
        sampler = GradSampler(model, [Shape(TOKENS, 8)])
    assert worst_error(sampler.gradients(RECORDS), expected) < 1e-5


@pytest.mark.parametrize("model_of", [with_bias, load_tiny])
def test_a_batch_that_failed_leaves_nothing_behind(folders, model_of, monkeypatch):
    sampler = GradSampler(model_of(folders["llama"]), [Shape(TOKENS, 4)])
    before = sampler.gradients(RECORDS[:3])
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(grad_samples, "loss_gradients", lambda logits, labels: 1 / 0)  # after the forward pass
        sampler.gradients(RECORDS[3:4])
    assert torch.equal(sampler.gradients(RECORDS[:3]), before)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**6])
@pytest.mark.parametrize("where", ["token_ids", "labels"])
def test_a_token_that_the_model_does_not_have_is_refused_before_it_is_reached(folders, where, token):
    model = load_tiny(folders["llama"])
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    model.module.register_forward_pre_hook(lambda *_: pytest.fail("on a GPU this would be the end"))
    broken = copy.deepcopy(RECORDS[3])
    getattr(broken, where)[0] = token
    with pytest.raises(ValueError, match="a token that the model does not have"):
        sampler.gradients([RECORDS[0], broken])


def test_opacus_s_hooks_are_refused_under_gradient_checkpointing(folders):
    model = with_bias(folders["llama"])
    model.enable_gradient_checkpointing()
    with pytest.raises(ModelError):
        GradSampler(model, [Shape(TOKENS, 4)])


def test_a_trained_layer_that_is_not_reached_is_refused(folders):
    model = load_tiny(folders["llama"])
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    layer = model.module.base_model.model.model.layers[0].self_attn
    layer.v_proj = layer.v_proj.base_layer
    with pytest.raises(ModelError, match="no gradient"):
        sampler.gradients(RECORDS[:2])


def test_a_model_that_flattens_the_batch_is_refused(folders):
    for batch_size in (1, 4):
        sampler = GradSampler(load_tiny(folders["opt"], "opt"), [Shape(TOKENS, batch_size)])
        with pytest.raises(ModelError, match="after a batch"):
            sampler.gradients(RECORDS[:1])
    attention = LanguageModel.load(folders["opt"], Lora(target_modules=("v_proj",)), seed=0)
    GradSampler(attention, [Shape(TOKENS, 4)]).gradients(RECORDS[:2])


def test_more_tokens_than_the_model_has_positions_are_refused(folders):
    with pytest.raises(ModelError):
        GradSampler(load_tiny(folders["llama"]), [Shape(65, 4)])


def test_an_example_of_another_length_is_refused(folders):
    sampler = GradSampler(load_tiny(folders["llama"]), [Shape(TOKENS + 1, 4)])
    with pytest.raises(ValueError, match="fixed length"):
        sampler.gradients(RECORDS[:1])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def sampler(folders, request):
    return GradSampler(load_tiny(folders[request.param], request.param), [Shape(TOKENS, 5)])


@settings(max_examples=40, deadline=None)
@given(
    neighbours=st.lists(st.sampled_from(NEIGHBOURS), max_size=4),
    position=st.integers(0, 4),
    adapter_seed=st.integers(0, 3),
)
def test_a_record_s_integers_are_the_same_among_all_neighbours_and_in_all_positions(
    sampler, neighbours, position, adapter_seed
):
    dimension = sampler.model.layout.dimension
    rng = np.random.default_rng(adapter_seed)
    scale = 10.0 ** rng.uniform(-4, 1, dimension)
    sampler.model.set_adapter((scale * rng.normal(size=dimension)).astype(np.float32))
    lattice = Lattice(dimension=dimension, clipping_norm=0.5)

    def integers(batch, row):
        return integers_of(lattice, sampler.gradients(batch)[row].numpy())

    position = min(position, len(neighbours))
    batch = [*neighbours[:position], RECORDS[0], *neighbours[position:]]
    alone = integers([RECORDS[0]], 0)
    assert alone.any()
    np.testing.assert_array_equal(integers(batch, position), alone)


def test_what_a_library_raises_over_records_is_told_by_its_name_alone(folders):
    model = load_tiny(folders["llama"])
    sampler = GradSampler(model, [Shape(TOKENS, 4)])

    def quoting(*_):
        raise RuntimeError("Zebedee has gout")

    model.module.register_forward_pre_hook(quoting)
    with pytest.raises(ModelError, match=r"cannot read \d+ tokens \(RuntimeError\)") as refusal:
        sampler.gradients(RECORDS[:2])
    assert "Zebedee" not in refusal.value.diagnostics()
    assert refusal.value.__suppress_context__


def test_a_model_without_gradients_is_refused(folders):
    model = load_tiny(folders["llama"])
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    model.module.get_output_embeddings().register_forward_hook(lambda _layer, _inputs, output: output.detach())
    with pytest.raises(ModelError, match="no gradient"):
        sampler.gradients(RECORDS[:2])
