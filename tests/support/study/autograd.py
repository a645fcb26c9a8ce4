"""The oracle of per-example gradients: plain autograd, one record at a time."""

from collections.abc import Iterable

import numpy as np
import torch

from grandrounds.common.model.example import NO_LOSS, Example
from grandrounds.common.model.language_model import LanguageModel


def autograd_alone(model: LanguageModel, example: Example) -> torch.Tensor:
    """The gradient [d] of one record, without padding or batch, by layers that no sampler has touched."""
    length = int(np.flatnonzero(example.labels != NO_LOSS).max()) + 1
    token_ids = torch.tensor(example.token_ids[:length], dtype=torch.int64)[None]
    labels = torch.tensor(example.labels[:length], dtype=torch.int64)[None]
    logits = model.module(input_ids=token_ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=NO_LOSS)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.trained.values()))])


def worst_error(gradients: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """The largest error of a row, relative to the row's norm."""
    return max(float((row - wanted).norm() / wanted.norm()) for row, wanted in zip(gradients, expected, strict=True))
