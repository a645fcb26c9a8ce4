"""When updates are to leave: how long the most work of an attempt takes, on the machine at hand."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ...client.training.dp_sgd import DpSgd, most_flights
from ...client.training.grad_samples import GradSampler, Shape
from ...client.training.rehearsal import random_unit
from ...common.privacy.mechanism import Lattice
from ...common.privacy.noise_layers import noise_levels
from ...common.privacy.rounded_gaussian import MIN_STDDEV, add_rounded_gaussian
from ...common.schema import known
from ...common.study.completion import draw_cap_of
from ...common.study.study import Study
from .rounding import two_digits_up

# Other programs of a machine take time, too.
_MARGIN = 1.25
_LEAST_S = 0.5
_BATCHES_TIMED = 3


def answer_after_s(study: Study, sampler: GradSampler) -> float:
    """Seconds that the largest draw of the largest site takes here, one batch of it failing, and a quarter more.

    Rounded up to two digits. ``study`` is complete. Reads no record; the time of one batch of the longest records
    stands for that of all.
    """
    dimension = sampler.model.layout.dimension
    return instant_of(study, batch_s=batch_s(dp_sgd_of(study, sampler)), shapes=sampler.shapes, dimension=dimension)


def instant_of(study: Study, *, batch_s: float, shapes: Sequence[Shape], dimension: int) -> float:
    """``answer_after_s`` of a study where a batch of the longest of ``shapes`` takes ``batch_s``.

    Of each other shape, batches may be begun as well (``rehearsal.with_most_work``), by their tokens. Where some have
    smaller batches than the longest, all records may be in those, and one of these takes ``batch_s`` at most.
    """
    units = max(
        draw_cap_of(study, max_units=known(site.max_units), delta=known(study.privacy.delta)) for site in study.sites
    )
    units += study.data.public_units
    longest = shapes[-1]
    others = sum(shape.tokens * shape.batch for shape in shapes[:-1]) / (longest.tokens * longest.batch)
    records = study.data.records_per_unit
    full = math.ceil(units * records / min(shape.batch for shape in shapes))
    batches = full + math.ceil(others * most_flights(units, records=records, dimension=dimension)) + longest.batch
    return two_digits_up(max(_MARGIN * study.training.local_steps * batches * batch_s, _LEAST_S))


def batch_s(dp_sgd: DpSgd) -> float:
    """Median seconds of a private step on one full batch of the longest records: from gradients to exact noise."""
    longest = dp_sgd.sampler.shapes[-1]
    batch = [random_unit(dp_sgd.sampler, longest.tokens, 1)] * longest.batch
    seconds = []
    for _ in range(_BATCHES_TIMED):
        started = time.perf_counter()
        dp_sgd.release(lambda: batch)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def dp_sgd_of(study: Study, sampler: GradSampler) -> DpSgd:
    """A site's DP-SGD; how wide the noise is that it adds changes no time and no norm."""
    privacy, dimension = study.privacy, sampler.model.layout.dimension
    lattice = Lattice(dimension=dimension, clipping_norm=privacy.clipping_norm, clipping=privacy.clipping)
    levels = noise_levels(sites=len(study.sites), threshold=study.threshold)
    draws = 1 + (len(levels) if study.privacy.trust == "distributed" else 0)
    return DpSgd(sampler=sampler, lattice=lattice, mechanism=_NoiseOfASite(draws=draws))


@dataclass(frozen=True, kw_only=True)
class _NoiseOfASite:
    """As many ``draws`` of each coordinate as a site makes, for a base and its layers."""

    draws: int
    noise_stddev: float = MIN_STDDEV

    def add_noise(self, total: NDArray[np.integer]) -> None:
        for _ in range(self.draws):
            add_rounded_gaussian(total, MIN_STDDEV)
