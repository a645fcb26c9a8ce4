"""An attempt that a site tries alone, to measure it: its draw is as large as a study's deadline has to allow for."""

import math
from dataclasses import replace

from ...common.model.example import Example
from ...common.study.manifest import DRAW_DEVIATIONS
from .cohort import Cohort
from .update import SiteUpdate


class _AllDrawn(Cohort[Example]):
    """Units that are drawn together, always: to measure with, and never to release."""

    def draw(self, *, sampling_probability: float, records_per_unit: int) -> list[tuple[Example, ...]]:
        return super().draw(sampling_probability=1.0, records_per_unit=records_per_unit)


def all_units(update: SiteUpdate) -> list[tuple[Example, ...]]:
    """Every unit with all its records: for the site's own operator, and nobody else."""
    return update.cohort.draw(sampling_probability=1.0, records_per_unit=2**31)


def with_large_draw(update: SiteUpdate) -> SiteUpdate:
    """The same update with a draw six deviations above the mean in every step: what it computes may not leave."""
    units, probability = all_units(update), update.manifest.study.privacy.sampling_probability
    mean = len(units) * probability
    size = max(1, math.ceil(mean + DRAW_DEVIATIONS * math.sqrt(mean * (1 - probability))))
    return replace(update, cohort=_AllDrawn(units[:size]))
