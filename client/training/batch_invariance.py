"""The test, on the machine at hand, that records leave one another's gradients alone to the last bit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...common.errors import ModelError
from ...common.model.example import NO_LOSS, Example
from ...common.model.language_model import LanguageModel
from .grad_samples import GradSampler, Shape
from .supported_models import WHY_ALONE


def independent_shapes(model: LanguageModel, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes, each with its batch if records do not touch one another's gradients in it on this machine, else 1.

    Compares, bit by bit, the gradients of random token sequences among different neighbours, in every position, and
    again after other sequences, under an ill-conditioned adapter: equal gradients clip and round to equal integers.
    Reads no record. The adapter is restored.

    Raises ModelError as ``GradSampler`` does, and where gradients differ at one sequence a batch, too: the model then
    keeps state from one sequence to the next, or draws at random, in evaluation mode.
    """
    adapter = model.get_adapter()
    try:
        return tuple(_independent(model, shape) for shape in shapes)
    finally:
        model.set_adapter(adapter)


def _independent(model: LanguageModel, shape: Shape) -> Shape:
    rng = np.random.Generator(np.random.Philox(key=0))  # a fixed probe: the answer is one of the machine, not of luck
    for batch in dict.fromkeys((shape.batch, 1)):
        tried = replace(shape, batch=batch)
        if _is_independent(GradSampler(model, [tried]), tried, rng):
            return tried
    raise ModelError(
        "a sequence's gradient is not the same twice, with others in between and one at a time, or is zero throughout",
        why=f"{WHY_ALONE}; state and randomness that evaluation mode leaves on would carry one into another's",
        fix="choose a model whose layers neither remember nor draw at random, or compute on the processors",
    )


def _is_independent(sampler: GradSampler, shape: Shape, rng: np.random.Generator) -> bool:
    model, size, tokens = sampler.model, shape.batch, shape.tokens
    full = random_example(model, tokens, tokens, rng)
    short = random_example(model, tokens, max(2, tokens // 3), rng)
    others = [random_example(model, tokens, length, rng) for length in rng.integers(2, tokens + 1, max(size, 2))]
    first = [full, short, *others][:size]
    batches = [
        # Each in every position; batches with no padding and with padding in every row; a record of a batch that
        # failed is tried alone; and what others leave behind would reach those that come again.
        *(
            [[Example.padding(tokens), *others[1:], short, full][-size:], [full] * size, [short] * size, [full]]
            * (size > 1)
        ),
        others[:size],
        first,
    ]
    gradients = _ill_conditioned(sampler, first, rng)
    if gradients is None:
        return False
    seen = {id(example): gradient for example, gradient in zip(first, gradients, strict=True)}
    for batch in batches:
        for example, gradient in zip(batch, sampler.gradients(batch), strict=True):
            if not torch.equal(seen.setdefault(id(example), gradient), gradient):
                return False
    return True


def _ill_conditioned(sampler: GradSampler, batch: Sequence[Example], rng: np.random.Generator) -> torch.Tensor | None:
    """Attach an adapter whose entries span seven orders of magnitude; the batch's gradients, if any survive one."""
    model = sampler.model
    magnitude = 10.0 ** rng.uniform(-6, 1, model.layout.dimension)
    adapter = (magnitude * rng.choice([-1.0, 1.0], magnitude.size)).astype(np.float32)
    for attempt in range(8):
        model.set_adapter(adapter * np.float32(10.0**-attempt))
        gradients = sampler.gradients(batch)
        # Zeros and overflows would be equal for no good reason.
        if bool(torch.isfinite(gradients).all()) and bool((gradients != 0).any()):
            return gradients
    return None


def random_example(model: LanguageModel, tokens: int, length: int, rng: np.random.Generator) -> Example:
    """``length`` random tokens of the model's vocabulary, padded to ``tokens``."""
    token_ids = rng.integers(0, model.vocabulary_size, tokens).astype(np.int32)
    is_padding = np.arange(tokens) >= length
    token_ids[is_padding] = 0
    return Example(token_ids=token_ids, labels=np.where(is_padding, NO_LOSS, token_ids).astype(np.int32))
