"""What only a machine with a GPU can show of the engine: ``make gpu``, or ``pytest tests/gpu/on_gpu.py`` there.

A record's gradient is what it is on processors, to rounding, and the same bits among any neighbours; and no record
can end the GPU's use for the others.
"""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.study.tiny_models import ARCHITECTURES, VOCABULARY, load_tiny, save_tiny_model, tiny_example
from transformers import AutoModelForCausalLM, LlamaConfig

from grandrounds.client.training.batch_invariance import independent_shapes
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.errors import ModelError
from grandrounds.common.model.devices import open_device
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.privacy.mechanism import Lattice, RoundedGaussian
from grandrounds.deploy.bench.steps.dp_step import StepBench

TOKENS = 24
RNG = np.random.default_rng(7)
RECORDS = [tiny_example(RNG, length=length, max_tokens=TOKENS) for length in (24, 3, 11, 17, 24, 6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of SmolLM2-135M's shape, with random weights."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def errors(gradients, expected):
    return (gradients - expected).norm(dim=1) / expected.norm(dim=1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["ffa", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_processors_and_repeat_to_the_last_bit(folders, architecture, kind, checkpointing):
    found = []
    for device in ("cpu", "cuda", "cuda"):
        model = load_tiny(folders[architecture], architecture, kind=kind, device=device)
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.device.type == device
        found.append(GradSampler(model, [Shape(TOKENS, 8)]).gradients(RECORDS))
    assert errors(found[1].cpu(), found[0]).max() < 1e-5
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize(("batch_size", "tokens"), [(8, 64), (16, 256)])
def test_neighbours_leave_a_record_s_gradient_alone_at_the_real_shape(large, batch_size, tokens):
    model = LanguageModel.load(large, Lora(target_modules=("v_proj",)), seed=0, device="cuda")
    assert independent_shapes(model, [Shape(tokens, batch_size)]) == (Shape(tokens, batch_size),)


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_on_a_base_model_of_less_precision_gradients_are_those_of_processors_within_it(large, precision):
    lora = Lora(target_modules=("q_proj", "v_proj", "down_proj"), rank=4)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        model = LanguageModel.load(large, lora, seed=0, device=device, precision=precision)
        assert (model.precision, model.device.type) == (precision, device)
        found.append(GradSampler(model, [Shape(TOKENS, 8)]).gradients(RECORDS).cpu())
    assert errors(found[1], found[0]).max() < 2**-3, "bfloat16 rounds at 2**-9, some hundred times in 30 layers"
    assert torch.equal(found[1], found[2])
    assert independent_shapes(model, [Shape(64, 8)]) == (Shape(64, 8),)


def test_a_kernel_that_adds_in_any_order_would_be_noticed(large, monkeypatch):
    logits = LanguageModel.logits

    def touched(self, token_ids):
        of_all = token_ids.double().sum().float()  # of the whole batch, and far below what a figure shows
        return logits(self, token_ids) * (1 + 1e-7 * torch.sin(of_all))

    monkeypatch.setattr(LanguageModel, "logits", touched)
    model = LanguageModel.load(large, Lora(target_modules=("v_proj",)), seed=0, device="cuda")
    assert independent_shapes(model, [Shape(64, 8)]) == (Shape(64, 1),)


def dp_sgd(model):
    lattice = Lattice(dimension=model.layout.dimension, clipping_norm=0.5)
    sampler = GradSampler(model, [Shape(TOKENS, 4)])
    return DpSgd(sampler=sampler, lattice=lattice, mechanism=RoundedGaussian(noise_stddev=64))


def test_a_record_with_a_token_of_another_model_counts_as_zero_and_the_others_as_ever(folders):
    step = dp_sgd(load_tiny(folders["llama"], device="cuda"))
    broken = copy.deepcopy(RECORDS[0])
    broken.token_ids[5] = 49152
    units = [[record] for record in RECORDS]
    alone = step.sum_units(units)
    assert np.array_equal(step.sum_units([*units[:2], [broken], *units[2:]]), alone)
    assert alone.any()


WITHOUT_THE_CHECK = """
import sys
import numpy, torch
sys.path[:0] = {paths!r}
from tiny_models import load_tiny
model = load_tiny({folder!r}, device="cuda")
torch.ones(1, device="cuda").sum().item()
try:
    model.logits(torch.full((1, 8), 49152, device="cuda"))
    torch.cuda.synchronize()
except RuntimeError:
    pass
try:
    torch.ones(1, device="cuda").sum().item()
except RuntimeError:
    sys.exit(3)
"""


def test_without_the_check_one_record_would_end_the_use_of_the_gpu(folders):
    script = WITHOUT_THE_CHECK.format(paths=sys.path, folder=str(folders["llama"]))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3


def test_a_gpu_that_this_machine_does_not_have_is_refused():
    with pytest.raises(ModelError, match="cuda:99 cannot be used"):
        open_device("cuda:99")


def test_a_step_s_memory_is_the_gpu_s(folders):
    lora = Lora(target_modules=("v_proj",))
    bench = StepBench(
        model=str(folders["llama"]), lora=lora, records=256, batch=256, tokens=64, repetitions=1, device="cuda"
    )
    private = bench.run()["kinds"]["private"]
    assert private["step_bytes"] > 256 * 64 * VOCABULARY * 4, "the logits alone are this much"
