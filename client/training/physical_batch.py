"""How many examples are computed at a time: what keeps the machine busy and fits into its memory."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from ...common.data.buckets import bucket_lengths
from ...common.errors import ModelError
from ...common.model.language_model import LanguageModel
from .batch_invariance import random_example
from .grad_samples import GradSampler, Shape

# Tokens of a batch beyond which a machine computes no faster; fewer leave fewer rows of a last batch empty.
_ENOUGH_TOKENS: Final = {"cpu": 384, "cuda": 8192}
_MOST_RECORDS: Final = 64
_SHARE_OF_MEMORY: Final = 0.8  # of what is free; fragments and libraries take some


def shapes_of(model: LanguageModel, *, max_tokens: int, physical_batch: int | None) -> tuple[Shape, ...]:
    """A shape for each length of ``bucket_lengths``, each with ``physical_batch`` examples or as many as suit here.

    On a GPU, memory is measured on random tokens. Raises ModelError where one example of the longest does not fit.
    """
    lengths = bucket_lengths(max_tokens)
    if physical_batch is not None:
        return tuple(Shape(tokens, physical_batch) for tokens in lengths)
    most = _most_tokens(model, lengths)
    return tuple(Shape(tokens, min(max(1, most // tokens), _MOST_RECORDS)) for tokens in lengths)


def _most_tokens(model: LanguageModel, lengths: Sequence[int]) -> int:
    enough, longest = _ENOUGH_TOKENS[model.device.type], lengths[-1]
    if model.device.type == "cpu":
        return enough
    # A record takes activations by its tokens and a gradient of all that is trained, of which a layer is there twice.
    base, one, two = (_peak_bytes(model, Shape(longest, batch)) for batch in (0, 1, 2))
    free, _ = torch.cuda.mem_get_info(model.device)
    del one
    per_record = max(two - base, 1) / 2
    fits = int(_SHARE_OF_MEMORY * free / per_record)
    if fits < 1:
        raise ModelError(
            f"a record of {longest} tokens takes {per_record / 2**30:.1f} GiB of the GPU's memory, of which "
            f"{free / 2**30:.1f} are free",
            why="a record whose gradient cannot be computed counts as zero, and the site would contribute noise alone",
            fix="turn gradient checkpointing on, give the process a larger GPU, or ask for fewer data.max_tokens",
        )
    return min(enough, fits * longest)


def _peak_bytes(model: LanguageModel, shape: Shape) -> int:
    """The most of the GPU's memory that gradients of a full batch take; of no batch: what is there."""
    torch.cuda.reset_peak_memory_stats(model.device)
    if shape.batch:
        rng = np.random.Generator(np.random.Philox(key=0))
        example = random_example(model, shape.tokens, shape.tokens, rng)
        GradSampler(model, [shape]).gradients([example] * shape.batch)
    return torch.cuda.max_memory_allocated(model.device)
