import inspect
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy as np
import pytest
from scipy.stats import binom

from grandrounds.client.training.cohort import Cohort
from grandrounds.common.errors import DataError, PrivacyError

FALSE_ALARM = 1e-7  # of one call of smallest_p_value on honest draws
UNITS, PROBABILITY, DRAWS = 16, 0.25, 4000
UNCAPPED = 10**6

Draws = list[frozenset[int]]


def p_value(count: int, trials: int, probability: float) -> float:
    """Two-sided and exact: under the hypothesis it is at most p with probability at most p."""
    return min(1.0, 2 * min(binom.cdf(count, trials, probability), binom.sf(count - 1, trials, probability)))


def smallest_p_value(draws: Draws) -> tuple[float, str]:
    """The strongest evidence against independent Poisson sampling, corrected (Bonferroni), and what it was.

    Each count is exactly binomial under the hypothesis: a unit over draws (the stated probability), a pair of units
    over draws and each size of a draw (independence of units), a unit in both of two successive draws (of draws).
    """
    q, size = PROBABILITY, len(draws)
    member = np.array([[unit in draw for unit in range(UNITS)] for draw in draws])
    twice = (member[0::2] & member[1::2]).sum(axis=0)
    sizes = np.bincount(member.sum(axis=1), minlength=UNITS + 1)
    evidence = [(p_value(int(n), size, q), f"unit {u}: {n}") for u, n in enumerate(member.sum(axis=0))]
    evidence += [(p_value(int(n), size // 2, q * q), f"unit {u} in two in a row: {n}") for u, n in enumerate(twice)]
    evidence += [
        (p_value(int(n), size, binom.pmf(k, UNITS, q)), f"draws of size {k}: {n}") for k, n in enumerate(sizes)
    ]
    for a, b in combinations(range(UNITS), 2):
        both = int((member[:, a] & member[:, b]).sum())
        evidence.append((p_value(both, size, q * q), f"units {a} and {b}: {both}"))
    p, what = min(evidence)
    return p * len(evidence), f"{what} of {size} draws"


def poisson(count: int) -> Draws:
    cohort = Cohort([[unit] for unit in range(UNITS)])
    drawn = (cohort.draw(sampling_probability=PROBABILITY, records_per_unit=1, cap=UNCAPPED) for _ in range(count))
    return [frozenset(unit for (unit,) in draw) for draw in drawn]


def test_units_are_drawn_independently_with_the_stated_probability() -> None:
    p, what = smallest_p_value(poisson(DRAWS))
    assert p > FALSE_ALARM, what


def fixed_size_batches(count: int) -> Draws:
    return [frozenset(random.sample(range(UNITS), round(UNITS * PROBABILITY))) for _ in range(count)]


def a_draw_reused_in_a_retry(count: int) -> Draws:
    return [draw for draw in poisson(count // 2) for _attempt in range(2)]


def shuffled_epochs(count: int) -> Draws:
    size = round(UNITS * PROBABILITY)
    draws: Draws = []
    while len(draws) < count:
        order = random.sample(range(UNITS), UNITS)
        draws += [frozenset(order[start : start + size]) for start in range(0, UNITS, size)]
    return draws[:count]


def shuffled_epochs_of_random_sizes(count: int) -> Draws:
    """Each unit once an epoch of 1/q draws, at a random one: sizes vary, only successive draws give it away."""
    draws: Draws = []
    while len(draws) < count:
        epoch = [random.randrange(round(1 / PROBABILITY)) for _ in range(UNITS)]
        draws += [frozenset(u for u, at in enumerate(epoch) if at == step) for step in range(round(1 / PROBABILITY))]
    return draws[:count]


def a_probability_rounded_up(count: int) -> Draws:
    return [frozenset(u for u in range(UNITS) if random.random() < PROBABILITY * 1.3) for _ in range(count)]


def households_drawn_together(count: int) -> Draws:
    pairs = [[pair for pair in range(UNITS // 2) if random.random() < PROBABILITY] for _ in range(count)]
    return [frozenset(2 * pair + one for pair in drawn for one in range(2)) for drawn in pairs]


@pytest.mark.parametrize(
    "broken",
    [
        fixed_size_batches,
        a_draw_reused_in_a_retry,
        shuffled_epochs,
        shuffled_epochs_of_random_sizes,
        a_probability_rounded_up,
        households_drawn_together,
    ],
)
def test_broken_sampling_fails_the_same_test(broken: Callable[[int], Draws]) -> None:
    p, what = smallest_p_value(broken(DRAWS))
    assert p < FALSE_ALARM, what


def test_with_probability_one_every_unit_is_drawn() -> None:
    cohort = Cohort([[unit] for unit in range(1000)])
    assert cohort.draw(sampling_probability=1, records_per_unit=1, cap=UNCAPPED) == [(unit,) for unit in range(1000)]


@pytest.mark.parametrize("probability", [2.0**-64, 1e-300])
def test_with_a_tiny_probability_the_draw_is_empty_and_valid(probability: float) -> None:
    cohort = Cohort([[unit] for unit in range(1000)])  # a false alarm has probability below 1e-16
    assert cohort.draw(sampling_probability=probability, records_per_unit=1, cap=UNCAPPED) == []


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0000000001, float("nan"), float("inf")])
def test_what_is_no_probability_of_sampling_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyError, match="probability"):
        Cohort([[1]]).draw(sampling_probability=probability, records_per_unit=1, cap=UNCAPPED)


def test_less_than_one_record_a_unit_is_refused() -> None:
    with pytest.raises(PrivacyError, match="0 records"):
        Cohort([[1]]).draw(sampling_probability=0.5, records_per_unit=0, cap=UNCAPPED)


def test_two_draws_share_no_randomness_and_no_seed_reaches_them() -> None:
    def draw() -> list[tuple[int, ...]]:
        random.seed(7)
        np.random.seed(7)
        cohort = Cohort([[unit] for unit in range(256)])
        return cohort.draw(sampling_probability=0.5, records_per_unit=1, cap=UNCAPPED)

    assert draw() != draw()  # equal with probability 2**-256
    assert set(inspect.signature(Cohort.draw).parameters) == {"self", "sampling_probability", "records_per_unit", "cap"}
    assert set(inspect.signature(Cohort.__init__).parameters) == {"self", "units"}


def test_records_of_a_unit_are_a_uniform_subset_without_replacement() -> None:
    records, limit = 6, 2
    cohort = Cohort([range(records)])
    drawn = [cohort.draw(sampling_probability=1, records_per_unit=limit, cap=UNCAPPED)[0] for _ in range(DRAWS)]
    subsets = list(combinations(range(records), limit))
    counts = {subset: sum(tuple(sorted(one)) == subset for one in drawn) for subset in subsets}
    assert sum(counts.values()) == DRAWS
    p = min(p_value(count, DRAWS, 1 / len(subsets)) for count in counts.values()) * len(subsets)
    assert p > FALSE_ALARM, counts


def test_a_unit_with_fewer_records_gives_all_of_them() -> None:
    assert Cohort([["a", "b"]]).draw(sampling_probability=1, records_per_unit=3, cap=UNCAPPED) == [("a", "b")]


class OnABadSector(list):
    def __getitem__(self, place):
        raise OSError("no page for Mrs Abernathy")


def test_a_unit_that_cannot_be_read_has_no_records_and_the_others_have_theirs() -> None:
    cohort = Cohort([["a"], OnABadSector("bcd"), ["e"]])
    assert cohort.draw(sampling_probability=1, records_per_unit=2, cap=UNCAPPED) == [("a",), (), ("e",)]


def test_a_draw_above_its_cap_keeps_a_uniform_subset_of_that_size() -> None:
    units, cap = 6, 2
    cohort = Cohort([[unit] for unit in range(units)])
    draws = [cohort.draw(sampling_probability=1, records_per_unit=1, cap=cap) for _ in range(DRAWS)]
    counts = Counter(frozenset(unit for (unit,) in draw) for draw in draws)
    subsets = list(map(frozenset, combinations(range(units), cap)))
    assert set(counts) <= set(subsets)
    p = min(p_value(counts[subset], DRAWS, 1 / len(subsets)) for subset in subsets) * len(subsets)
    assert p > FALSE_ALARM, counts


def test_a_draw_within_its_cap_is_whole() -> None:
    cohort = Cohort([[unit] for unit in range(5)])
    drawn = cohort.draw(sampling_probability=1, records_per_unit=1, cap=5)
    assert sorted(unit for (unit,) in drawn) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("unit", ["patient", "record"])
def test_data_of_more_units_than_the_site_states_are_refused(unit: Literal["patient", "record"]) -> None:
    units = [[1], [2], [3]]
    assert Cohort.stated(units, privacy_unit=unit, max_units=3)
    with pytest.raises(DataError, match="max_units"):
        Cohort.stated(units, privacy_unit=unit, max_units=2)


@pytest.mark.parametrize("units", [[], [[1], []]])
def test_a_cohort_without_patients_or_with_an_empty_one_is_refused(units: list[list[int]]) -> None:
    with pytest.raises(DataError, match="no patients"):
        Cohort(units)


def test_a_printed_cohort_does_not_tell_how_many_units_it_has() -> None:
    assert not hasattr(Cohort([[1]]), "__len__")
    assert repr(Cohort([[1]])).startswith("<")
