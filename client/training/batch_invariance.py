"""The test, on the machine at hand, that records leave one another's gradients alone to the last bit."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

import numpy as np
import torch

from ...common.errors import ModelError
from ...common.model.adapter import Vector
from ...common.model.example import NO_LOSS, Example
from ...common.model.language_model import LanguageModel
from .grad_samples import GradSampler, Shape
from .supported_models import WHY_ALONE

_BLOCK: Final = 1 << 20  # numbers drawn at a time


def independent_shapes(model: LanguageModel, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes, each with its batch if records do not touch one another's gradients in it on this machine, else 1.

    Compares, bit by bit, the gradients of random token sequences among different neighbours, in every position, and
    again after other sequences, of other lengths, too, under an ill-conditioned adapter: equal gradients clip and round
    to equal integers. Reads no record. The adapter is restored.

    Raises ModelError as ``GradSampler`` does, and where gradients differ at one sequence a batch, too: the model then
    keeps state from one sequence to the next, or draws at random, in evaluation mode.
    """
    adapter = model.get_adapter()
    probe = _Probe(model)
    try:
        together = probe.independent(shapes)
        alone = [replace(shape, batch=1) for shape in shapes if shape not in together]
        if set(alone) - set(probe.independent(alone)):
            raise ModelError(
                "a sequence's gradient is not the same twice, with others in between and one at a time, or is zero "
                "throughout",
                why=f"{WHY_ALONE}; state and randomness that evaluation mode leaves on would carry one into another's",
                fix="choose a model whose layers neither remember nor draw at random, or compute on the processors",
            )
        found = tuple(shape if shape in together else replace(shape, batch=1) for shape in shapes)
        if not probe.carry_nothing(found):
            raise ModelError(
                "a sequence's gradient is another after longer sequences than after shorter ones",
                why=f"{WHY_ALONE}; what the model keeps of the lengths that it read would carry one into another's",
                fix="choose a model that computes a sequence alike whatever it read before, or another data.max_tokens",
            )
        return found
    finally:
        model.set_adapter(adapter)


def check_alike(sampler: GradSampler) -> None:
    """Raises ModelError unless the sampler's ranks, each of which does this, compute the same bits in all its shapes.

    Which rank a unit is dealt to follows from the other units of its draw: were its integers another rank's to change,
    they would follow from these. Compares gradients as ``independent_shapes`` does. Reads no record.
    """
    adapter = sampler.model.get_adapter()
    try:
        own = _Probe(sampler.model).bits(sampler)
    finally:
        sampler.model.set_adapter(adapter)
    first, *others = sampler.ranks.everyones(own)
    devices = sampler.ranks.devices
    different = [device for device, bits in zip(devices[1:], others, strict=True) if bits != first]
    if different:
        raise ModelError(
            f"gradients have other bits on {', '.join(different)} than on {devices[0]}",
            why="which device computes a patient's gradient follows from who else is drawn, and must not change it",
            fix="name devices of one kind, or one alone",
        )


class _Probe:
    """An adapter whose entries span seven orders of magnitude, as large as gradients survive, and random records.

    The same for every machine: the answer is one of the machine, not of luck.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._rng = np.random.Generator(np.random.Philox(key=0))
        self._attempts_left = 8
        model.set_adapter(self._ill_conditioned())

    def _ill_conditioned(self) -> Vector:
        adapter = np.empty(self._model.layout.dimension, dtype=np.float32)
        for start in range(0, adapter.size, _BLOCK):
            block = adapter[start : start + _BLOCK]
            magnitude = 10.0 ** self._rng.uniform(-6, 1, block.size)
            block[:] = magnitude * self._rng.choice([-1.0, 1.0], block.size)
        return adapter

    def independent(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Those of the shapes in which gradients are the same bits wherever their records lie."""
        if not shapes:
            return []
        sampler = GradSampler(self._model, shapes)
        return [shape for shape in shapes if self._is_independent(sampler, shape)]

    def carry_nothing(self, shapes: Sequence[Shape]) -> bool:
        """Whether gradients in a shape are the same bits after the shorter ones and after the longer ones."""
        sampler = GradSampler(self._model, shapes)
        examples = [random_example(self._model, shape.tokens, shape.tokens, self._rng) for shape in sampler.shapes]
        rising = [_bits(sampler.gradients([example])[0]) for example in examples]
        falling = [_bits(sampler.gradients([example])[0]) for example in reversed(examples)]
        return rising == falling[::-1]

    def bits(self, sampler: GradSampler) -> bytes:
        """A hash of the gradients of a full batch in each of the sampler's shapes."""
        found = sha256()
        for shape in sampler.shapes:
            lengths = self._rng.integers(2, shape.tokens + 1, shape.batch)
            batch = [random_example(self._model, shape.tokens, length, self._rng) for length in lengths]
            found.update(b"".join(self._surviving(sampler, batch)))
        return found.digest()

    def _is_independent(self, sampler: GradSampler, shape: Shape) -> bool:
        size, tokens, rng = shape.batch, shape.tokens, self._rng
        full = random_example(self._model, tokens, tokens, rng)
        short = random_example(self._model, tokens, max(2, tokens // 3), rng)
        lengths = rng.integers(2, tokens + 1, max(size, 2))
        others = [random_example(self._model, tokens, length, rng) for length in lengths]
        first = [full, short, *others][:size]
        moved = [
            # Each in every position; batches with no padding and with padding in every row; and a record of a batch
            # that failed is tried alone.
            [Example.padding(tokens), *others[1:], short, full][-size:],
            [full] * size,
            [short] * size,
            [full],
        ]
        # What others leave behind would reach those that come again.
        batches = [*(moved if size > 1 else ()), others[:size], first]
        surviving = self._surviving(sampler, first)
        if not surviving:
            return False
        seen = dict(zip(map(id, first), surviving, strict=True))
        for batch in batches:
            for example, bits in zip(batch, map(_bits, sampler.gradients(batch)), strict=True):
                if seen.setdefault(id(example), bits) != bits:
                    return False
        return True

    def _surviving(self, sampler: GradSampler, batch: Sequence[Example]) -> list[bytes]:
        """The bits of a batch's gradients under an adapter that leaves some, where there is one.

        Zeros and overflows are equal for no good reason.
        """
        while self._attempts_left:
            gradients = sampler.gradients(batch)
            if bool(torch.isfinite(gradients).all()) and bool((gradients != 0).any()):
                return [_bits(gradient) for gradient in gradients]
            del gradients  # while the next ones are computed
            self._attempts_left -= 1
            with torch.no_grad():
                for tensor in self._model.trained.values():
                    tensor.mul_(0.1)
        return []


def _bits(gradient: torch.Tensor) -> bytes:
    """What stands for many numbers, which are not kept."""
    return sha256(gradient.cpu().numpy().data).digest()


def random_example(model: LanguageModel, tokens: int, length: int, rng: np.random.Generator) -> Example:
    """``length`` random tokens of the model's vocabulary, padded to ``tokens``."""
    token_ids = rng.integers(0, model.vocabulary_size, tokens).astype(np.int32)
    is_padding = np.arange(tokens) >= length
    token_ids[is_padding] = 0
    return Example(token_ids=token_ids, labels=np.where(is_padding, NO_LOSS, token_ids).astype(np.int32))
