"""The test, on the machine at hand, that records leave one another's gradients alone to the last bit."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
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

    Compares, bit by bit, the gradients of random token sequences in two places, among different neighbours, and after
    other sequences, shorter and longer ones, too, under an ill-conditioned adapter: equal gradients clip and round to
    equal integers. Reads no record. The adapter is restored.

    Raises ModelError as ``GradSampler`` does, and where gradients differ at one sequence a batch, too: the model then
    keeps state from one sequence to the next, or draws at random, in evaluation mode.
    """
    adapter = model.get_adapter()
    probe = _Probe(model)
    try:
        together = probe.independent(shapes)
        found = tuple(shape if shape in together else replace(shape, batch=1) for shape in shapes)
        apart = [shape for shape in shapes if shape not in together]
        if any(shape.batch == 1 for shape in apart) or (apart and set(found) - set(probe.independent(found))):
            raise ModelError(
                "a sequence's gradient is not the same after longer sequences and after shorter ones, or not the same "
                "twice, one at a time, or is zero throughout",
                why=f"{WHY_ALONE}; state and randomness that evaluation mode leaves on would carry one into another's",
                fix="choose a model whose layers neither remember nor draw at random, or another data.max_tokens, or "
                "compute on the processors",
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
        """Those of the shapes in which gradients are the same bits wherever their records lie, and whatever was read.

        Every shape is computed once after the shorter ones and again after the longer ones, so that one comparison
        answers two questions: whether a gradient has the bits that it had in another place, among others, and before
        all that was read since. Places are compared with their neighbours, which leads through all of a batch.
        """
        sampler = GradSampler(self._model, shapes)
        # Full ones and, where they lie beside others, padded ones.
        sequences = [
            (self._random(shape, full=True), self._random(shape, full=shape.batch == 1)) for shape in sampler.shapes
        ]
        rising = self._surviving(sampler, [full for full, _ in sequences])
        if not rising:
            return []
        falling = reversed([*zip(sampler.shapes, sequences, rising, strict=True)])
        return [
            shape
            for number, (shape, (full, others), bits) in enumerate(falling)
            if self._is_alike(sampler, _elsewhere(full, others, number), dict(zip(map(id, full), bits, strict=True)))
        ]

    def bits(self, sampler: GradSampler) -> bytes:
        """A hash of the gradients of a full batch in each of the sampler's shapes."""
        batches = [self._random(shape, full=False) for shape in sampler.shapes]
        return sha256(b"".join(chain(*self._surviving(sampler, batches)))).digest()

    def _random(self, shape: Shape, *, full: bool) -> list[Example]:
        """A batch of random sequences, each without padding or each with some."""
        tokens = shape.tokens
        lengths = [tokens] * shape.batch if full else self._rng.integers(2, max(3, tokens), shape.batch)
        return [random_example(self._model, tokens, length, self._rng) for length in lengths]

    def _is_alike(self, sampler: GradSampler, batches: Iterable[Sequence[Example]], seen: dict[int, bytes]) -> bool:
        """Whether no sequence's gradient has two values, those included that were ``seen`` of it (its ``id``)."""
        for batch in batches:
            for example, bits in zip(batch, map(_bits, sampler.gradients(batch)), strict=True):
                if seen.setdefault(id(example), bits) != bits:
                    return False
        return True

    def _surviving(self, sampler: GradSampler, batches: Sequence[Sequence[Example]]) -> list[list[bytes]]:
        """The bits of each batch's gradients under an adapter that leaves some, where there is one."""
        while self._attempts_left:
            found: list[list[bytes]] = []
            for batch in batches:
                if not (bits := _bits_of_some(sampler.gradients(batch))):
                    break
                found.append(bits)
            else:
                return found
            self._attempts_left -= 1
            with torch.no_grad():
                for tensor in self._model.trained.values():
                    tensor.mul_(0.1)
        return []


def _elsewhere(full: Sequence[Example], others: Sequence[Example], number: int) -> Sequence[Sequence[Example]]:
    """Batches that have in other places and company what was computed as the batch ``full``, of some shape.

    Both kinds in turn, one place further; the others, which are padded; and one alone, as the last of a draw is, and
    each of a batch that failed. Where there is no company, two of three shapes follow directly on a longer one, and the
    third on another sequence of its own length.
    """
    if len(full) == 1:
        return [full] if number % 3 else [others, full]
    mixed = [(full, others)[place % 2][place] for place in range(len(full))]
    return [[*mixed[-1:], *mixed[:-1]], others, full[:1]]


def _bits_of_some(gradients: torch.Tensor) -> list[bytes]:
    """Each gradient's bits; nothing where all are zero or some not finite, and would be equal for no good reason."""
    ends = torch.stack(gradients.aminmax())  # without a copy: not finite where one of all numbers is not
    if bool(torch.isfinite(ends).all()) and bool((ends != 0).any()):
        return [_bits(gradient) for gradient in gradients]
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
