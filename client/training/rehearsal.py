"""The most work that an attempt can be, on random tokens: for a site to measure beforehand, and never to release."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...common.model.example import Example
from .batch_invariance import random_example
from .cohort import Cohort
from .grad_samples import GradSampler
from .update import SiteUpdate


class SlowestPath(GradSampler):
    """Fails every batch once it is computed, so that DP-SGD tries its records one by one."""

    def __init__(self, sampler: GradSampler) -> None:
        super().__init__(sampler.model, batch_size=sampler.batch_size, max_tokens=sampler.max_tokens)
        self._alone = 0

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """As the sampler's, where the batch has failed before. Raises RuntimeError where it has not."""
        found = super().gradients(examples)
        if self._alone:
            self._alone -= 1
            return found
        self._alone = len(examples)
        raise RuntimeError("a rehearsal")


class _AllDrawn(Cohort[Example]):
    """Units that are drawn together, always."""

    def draw(self, *, sampling_probability: float, records_per_unit: int, cap: int) -> list[tuple[Example, ...]]:
        return super().draw(sampling_probability=1.0, records_per_unit=records_per_unit, cap=cap)


def with_most_work(update: SiteUpdate) -> SiteUpdate:
    """The update of a draw that reaches its cap, in which every batch fails: no draw of records costs more.

    It reads no record.
    """
    manifest, cap = update.manifest, update.manifest.draw_cap(update.name)
    unit = random_unit(update.sampler, manifest.study.data.records_per_unit)
    return replace(update, cohort=_AllDrawn([unit] * cap), sampler=SlowestPath(update.sampler))


def random_unit(sampler: GradSampler, records: int) -> tuple[Example, ...]:
    """A unit of ``records`` full records of random tokens."""
    rng = np.random.Generator(np.random.Philox(key=0))
    tokens = sampler.max_tokens
    return tuple(random_example(sampler.model, tokens, tokens, rng) for _ in range(records))
