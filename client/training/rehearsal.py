"""The most work that an attempt can be, on random tokens: for a site to measure beforehand, and never to release."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...common.model.example import Example
from .batch_invariance import random_example
from .cohort import Cohort
from .dp_sgd import most_flights
from .grad_samples import GradSampler
from .update import SiteUpdate


class OneFailure(GradSampler):
    """Fails its first batch of the longest records once it is computed, so that DP-SGD tries them one by one."""

    def __init__(self, sampler: GradSampler) -> None:
        super().__init__(sampler.model, sampler.shapes, ranks=sampler.ranks)
        self._has_failed = False

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """As the sampler's. Raises RuntimeError the first time."""
        found = super().gradients(examples)
        if self._has_failed or self.shape_of(examples[0]) != self.shapes[-1]:
            return found
        self._has_failed = True
        raise RuntimeError("a rehearsal")


class _AllDrawn(Cohort[Example]):
    """Units that are drawn together, always."""

    def draw(self, *, sampling_probability: float, records_per_unit: int, cap: int) -> list[tuple[Example, ...]]:
        return super().draw(sampling_probability=1.0, records_per_unit=records_per_unit, cap=1 << 62)


def with_most_work(update: SiteUpdate) -> SiteUpdate:
    """The update of a draw that reaches its cap with the longest records, and batches of each other shape beside it.

    No draw of records costs more: a longer record costs more than a shorter one in as large a batch, and in each part
    of a draw that is worked on together, all but one of a shape's batches are full. Of shorter records in smaller
    batches (``independent_shapes``), which share less of what any batch costs, there is a draw at its cap, too. Records
    are judged before a batch is computed, so that none makes it fail; that one does is in here all the same, for a
    machine that is short of something. It reads no record.
    """
    manifest = update.manifest
    cap = manifest.draw_cap(update.name) + manifest.study.data.public_units  # public units are as long as others
    records, ranks = manifest.study.data.records_per_unit, update.sampler.ranks.count
    # Of each of the shorter shapes, every rank is dealt as many units.
    flights = ranks * most_flights(math.ceil(cap / ranks), records=records, dimension=manifest.dimension)
    *shorter, longest = update.sampler.shapes
    units = [random_unit(update.sampler, longest.tokens, records)] * cap
    for shape in shorter:
        units += [random_unit(update.sampler, shape.tokens, 1)] * (flights * shape.batch)
        if shape.batch < longest.batch:
            units += [random_unit(update.sampler, shape.tokens, records)] * cap
    return replace(update, cohort=_AllDrawn(units), public=None, sampler=OneFailure(update.sampler))


def random_unit(sampler: GradSampler, tokens: int, records: int) -> tuple[Example, ...]:
    """A unit of ``records`` full records of random tokens."""
    rng = np.random.Generator(np.random.Philox(key=0))
    return tuple(random_example(sampler.model, tokens, tokens, rng) for _ in range(records))
