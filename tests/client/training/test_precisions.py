"""On a base model in 16 or 4 bits, gradients are each record's own to the last bit, and as exact as autograd's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.study.architectures import save_architecture
from support.study.autograd import autograd_alone, worst_error
from support.study.tiny_models import tiny_example
from support.tape.neighbours import run
from support.tape.paths import PATHS

from grandrounds.client.training.batch_invariance import independent_shapes
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.model.base_model import Precision
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora

SHAPE = Shape(24, 4)
RNG = np.random.default_rng(7)
RECORDS = [tiny_example(RNG, length=length, max_tokens=SHAPE.tokens) for length in (24, 9)]
SIZES = {"hidden_size": 64, "head_dim": 16}  # rows of 64 weights, in which blocks of nf4 end


NAMES = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma3", "phi", "phi3", "gpt2")


# Around weights of 4 bits all is in bfloat16, too.
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "nf4") for name in NAMES), *((name, "bfloat16") for name in ("llama", "gpt2"))]
)
def test_each_gradient_is_that_of_its_record_alone_within_the_precision(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    folder = save_architecture(tmp_path, name, **({"n_embd": 64} if name == "gpt2" else SIZES))
    lora = Lora(target_modules="all-linear", kind="lora", rank=2, alpha=4.0)
    model = LanguageModel.load(folder, lora, seed=3, precision=precision)
    widened = LanguageModel.load_widened(folder, lora, seed=3, precision=precision)
    for each in (model, widened):  # as in the middle of training
        each.set_adapter(np.random.default_rng(5).normal(0, 0.1, model.layout.dimension).astype(np.float32))
    alone, exact = ([autograd_alone(each, record) for record in RECORDS] for each in (model, widened))
    gradients = GradSampler(model, [SHAPE]).gradients(RECORDS)
    assert gradients.dtype == torch.float32
    # Bfloat16 rounds at 2**-9, at each of some twenty steps: so far from what autograd finds by itself, without
    # padding; and no further than that is from the gradient of the same numbers in float32.
    assert worst_error(gradients, alone) < 2**-4
    assert worst_error(gradients, exact) < 2 * worst_error(alone, exact)
    assert independent_shapes(model, [SHAPE]) == (SHAPE,)


def test_in_four_bits_a_unit_moves_a_release_by_its_own_integers_and_nothing_else() -> None:
    pair = run(PATHS["a base in four bits"])
    assert pair.findings() == []
    assert pair.moved > 0
