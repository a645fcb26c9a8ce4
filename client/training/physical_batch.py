"""How a machine computes gradients: how many examples at a time, and whether activations are kept or computed again."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from ...common.data.buckets import bucket_lengths
from ...common.model.devices import Checkpointing, free_bytes
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from ...common.study.study import Study
from .batch_invariance import check_alike, independent_shapes, random_example
from .grad_samples import GradSampler, Shape
from .ranks import ALONE, Ranks

# Tokens of a batch beyond which a machine computes no faster.
_ENOUGH_TOKENS: Final = {"cpu": 384, "cuda": 8192}
_MOST_RECORDS: Final = 64
# The last batch of each shape is rarely full: of a usual draw, a batch holds at most this share.
_SHARE_OF_DRAW: Final = 1 / 32
_SHARE_OF_MEMORY: Final = 0.8  # of what is free; fragments and libraries take some


class MachineSampler(GradSampler):
    """A sampler whose physical batches suit the machine, and what was found on the way: ``told``, for the site alone.

    Nothing in it follows from records: the shapes from the study's numbers, the machine's memory, and random tokens.
    """

    def __init__(
        self, study: Study, model: LanguageModel, *, checkpointing: Checkpointing = "auto", ranks: Ranks = ALONE
    ) -> None:
        """Raises ModelError, also where one example of the longest does not fit into the machine's memory.

        Of several ``ranks``, each of which does this, the smallest batch that one of them finds is everyone's; where
        the base is sharded, memory is taken to be short.
        """
        lengths = bucket_lengths(study.data.max_tokens)
        recomputes = checkpointing == "on" or (
            checkpointing == "auto" and (ranks.is_sharded or any(ranks.everyones(self._is_short(model, lengths[-1]))))
        )
        if recomputes:
            model.enable_gradient_checkpointing()
        wanted = _smallest(ranks.everyones(_wanted(study, model, lengths)))
        found = _smallest(ranks.everyones(independent_shapes(model, wanted)))
        super().__init__(model, found, ranks=ranks)
        if ranks.count > 1:
            check_alike(self)
        alone = ", ".join(str(one.tokens) for one, asked in zip(found, wanted, strict=True) if one != asked)
        attention = getattr(model.module.config, "_attn_implementation", "the model's own")
        self.told = (
            f"the base model is held in {model.precision} on {model.device}; kernels are those of torch "
            f"{torch.__version__} ({torch.get_num_threads()} threads on processors), attention is {attention}",
            *ranks.told,
            f"activations are {'computed again in the backward pass' if recomputes else 'kept for the backward pass'}"
            f" (checkpointing: {checkpointing})",
            _batches_told(study, found),
            f"one at a time, since others change a record's bits here: records of {alone}"
            if alone
            else "random sequences' gradients were the same bits among others and alone, in every shape",
        )

    @staticmethod
    def _is_short(model: LanguageModel, tokens: int) -> bool:
        """Whether one record's activations would take more than half of the free memory."""
        return 2 * _activation_bytes(model, tokens) > free_bytes(model.device)


def _smallest(shapes: Sequence[Sequence[Shape]]) -> tuple[Shape, ...]:
    """Of several batches of each length the smallest."""
    return tuple(map(min, zip(*shapes, strict=True)))


def _batches_told(study: Study, shapes: Sequence[Shape]) -> str:
    one_size = len({shape.batch for shape in shapes}) == 1
    lengths = ", ".join(str(shape.tokens) if one_size else f"{shape.tokens} ({shape.batch})" for shape in shapes)
    many = f"{shapes[0].batch} at a time" if one_size else "as many at a time as stands in brackets"
    why = (
        f"a step of the study draws about {_usual_draw(study):.0f}, and few rows of a last batch shall stay empty"
        if study.training.physical_batch is None
        else "the study's training.physical_batch"
    )
    return f"records are padded to the next of {lengths} tokens, and computed {many}: {why}"


def _usual_draw(study: Study) -> float:
    """How many records a site's step reads, on average, by what the study says."""
    per_unit = study.privacy.sampling_probability * study.data.records_per_unit
    return per_unit * study.total_nominal_units / len(study.sites)


def _wanted(study: Study, model: LanguageModel, lengths: Sequence[int]) -> tuple[Shape, ...]:
    if study.training.physical_batch is not None:
        return tuple(Shape(tokens, study.training.physical_batch) for tokens in lengths)
    records = max(1, min(int(_usual_draw(study) * _SHARE_OF_DRAW), _MOST_RECORDS))
    tokens_at_a_time = most_tokens(model, lengths[-1])
    return tuple(Shape(tokens, max(1, min(tokens_at_a_time // tokens, records))) for tokens in lengths)


def most_tokens(model: LanguageModel, longest: int) -> int:
    """How many tokens are computed at a time, of records of up to ``longest``: more bring nothing, or do not fit."""
    enough = _ENOUGH_TOKENS[model.device.type]
    if model.device.type == "cpu":
        return enough
    free = free_bytes(model.device)
    one = _peak_bytes(model, Shape(longest, 1))
    return min(enough, max(1, int(_SHARE_OF_MEMORY * free / one)) * longest)


def _peak_bytes(model: LanguageModel, shape: Shape) -> int:
    """How much of the GPU's memory the gradients of a full batch take beside the model."""
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    GradSampler(model, [shape]).gradients([_full_record(model, shape.tokens)] * shape.batch)
    return torch.cuda.max_memory_allocated(model.device) - before


def _activation_bytes(model: LanguageModel, tokens: int) -> int:
    """What one record's forward pass keeps for its backward pass; the model's own tensors are not counted."""
    kept = {tensor.untyped_storage().data_ptr(): 0 for tensor in (*model.module.parameters(), *model.module.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    token_ids, _ = model.stack([_full_record(model, tokens)])
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(model.logits(token_ids))  # where the loss's gradient is written
    return sum(kept.values())


def _full_record(model: LanguageModel, tokens: int) -> Example:
    return random_example(model, tokens, tokens, np.random.Generator(np.random.Philox(key=0)))
