"""What a site measures before a study: a draw six deviations above the mean."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.study.federation import small_study

from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.rehearsal import all_units, with_large_draw


@dataclass(frozen=True)
class Update:
    """Of a study with ``probability``, and with two records a unit."""

    cohort: Cohort
    probability: float
    drawn: list = field(default_factory=list)

    @property
    def manifest(self):
        study = small_study(privacy={"sampling_probability": self.probability})
        return type("Manifest", (), {"study": study})


@pytest.mark.parametrize(
    ("units", "probability", "size"),
    [(1000, 0.01, 10 + 6 * math.sqrt(9.9)), (100, 0.9, 100), (5, 1.0, 5), (1, 1e-9, 1)],
)
def test_a_large_draw_is_six_deviations_above_the_mean_and_never_more_than_all(units, probability, size):
    update: Any = Update(Cohort([(unit, unit + units) for unit in range(units)]), probability)
    large = with_large_draw(update)
    for _ in range(3):
        drawn = large.cohort.draw(sampling_probability=1e-9, records_per_unit=1)
        assert len(drawn) == math.ceil(size)
        assert all(len(records) == 1 for records in drawn)


def test_all_units_are_all_with_all_their_records():
    cohort = Cohort([(0, 1, 2), (3,)])
    update: Any = Update(cohort, 0.5)
    units: list[Any] = all_units(update)
    assert units == [(0, 1, 2), (3,)]
