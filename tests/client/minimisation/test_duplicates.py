"""Of a patient's records those count that say something new."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.client.minimisation.duplicates import distinct, first_of_each, signature

RNG = np.random.default_rng(7)


def jaccard(one, other) -> float:
    """Of stretches of five tokens, exactly."""
    sets = [{tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (one.tolist(), other.tolist())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("changed", [0, 2, 10, 40, 200])
def test_a_signature_estimates_how_much_two_records_share(changed: int) -> None:
    one = RNG.integers(0, 49_152, 400)
    other = one.copy()
    other[RNG.choice(400, changed, replace=False)] = 50_000
    estimate = np.mean(signature(one) == signature(other))
    # 128 draws: five standard deviations, of which at most one in a million estimates is farther off.
    assert abs(estimate - jaccard(one, other)) <= 5 * 0.5 / np.sqrt(128), (changed, estimate)


def mixed(number: int) -> int:
    """The finaliser of splitmix64, in whole numbers of any size."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def test_a_signature_is_the_least_of_each_hash_over_all_stretches() -> None:
    tokens = RNG.integers(0, 49_152, 30)
    stretches = []
    for start in range(26):
        hashed = 0
        for token in tokens[start : start + 5].tolist():
            hashed = mixed((hashed + token) % 2**64)
        stretches.append(hashed)
    golden, silver = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
    expected = [
        min(mixed((each * (golden * i % 2**64 | 1) + silver * i) % 2**64) for each in stretches) for i in range(1, 129)
    ]
    assert signature(tokens.astype(np.uint16)).tolist() == expected == signature(tokens).tolist()


def test_texts_shorter_than_a_stretch_are_told_apart() -> None:
    short = [np.array(tokens, dtype=np.uint16) for tokens in ([], [1], [2], [1, 2], [2, 1], [1])]
    assert distinct([signature(tokens) for tokens in short], 0.9) == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(0, 3), max_size=8))
def test_exact_duplicates_count_once_and_the_first_of_each_stays(numbers: list[int]) -> None:
    records = [np.full(9, number, dtype=np.uint16) for number in numbers]
    kept = first_of_each([record.tobytes() for record in records])
    assert kept == [i for i, number in enumerate(numbers) if number not in numbers[:i]]
    assert distinct([signature(record) for record in records], 1.0) == kept


def test_near_duplicates_of_a_record_that_was_left_out_are_compared_with_those_that_stay() -> None:
    first, far = (RNG.integers(0, 49_152, 400) for _ in range(2))
    near = first.copy()
    near[7] = 50_000
    assert distinct([signature(each) for each in (first, near, far, near, first)], 0.9) == [0, 2]


@pytest.mark.parametrize("threshold", [0.5, 0.63, 0.7, 0.9, 0.95, 1.0])
def test_no_pair_that_shares_enough_is_passed_over(threshold: float) -> None:
    signatures = RNG.integers(0, 2**63, (8, 128), dtype=np.uint64).repeat(12, axis=0)
    for number, one in enumerate(signatures):
        changed = RNG.choice(128, size=max(0, round(64 * (1 - threshold)) + number % 6 - 3), replace=False)
        one[changed] = number
    kept: list[int] = []
    for number, one in enumerate(signatures):
        if not any(np.mean(signatures[other] == one) >= threshold for other in kept):
            kept.append(number)
    assert distinct(list(signatures), threshold) == kept
    assert len(kept) < len(signatures)
