"""A language model that is small and has a large adapter: what is left to see is what carries the adapter.

The larger the rank, the narrower is the layer that an adapter of so many numbers is on, and the less memory is there
of what the layer computes, of which there is a row for each token.
"""

import shutil
from pathlib import Path
from typing import Final

from ..builtin.models import tiny_model

TARGETS: Final = ("gate_proj", "up_proj")
RANK: Final = 256
_HIDDEN: Final = 16


def wide_model(folder: Path, *, dimension: int) -> int:
    """Write a random model with one wide layer to ``folder``; an adapter of ``RANK`` on ``TARGETS`` trains so many.

    Their number, which is returned, is ``dimension`` up to a whole layer's width.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_model(), folder)
    width = -(-dimension // (len(TARGETS) * RANK))
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": _HIDDEN, "intermediate_size": width, "num_hidden_layers": 1})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return len(TARGETS) * RANK * width
