"""The bands of positions cut records into parts that make up the whole."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.model.perplexity import BANDS, Perplexity, band_sums

counts = st.lists(st.integers(0, 10**6), min_size=len(BANDS), max_size=len(BANDS)).filter(any)


def test_the_bands_begin_with_the_first_token_follow_one_another_and_have_no_end() -> None:
    assert BANDS[0][0] == 0 and BANDS[-1][1] is None
    assert all(end == begin for (_, end), (begin, _) in pairwise(BANDS))


@given(counts, st.lists(st.floats(0, 20), min_size=len(BANDS), max_size=len(BANDS)))
def test_the_bands_recombine_to_the_whole(tokens: list[int], means: list[float]) -> None:
    losses = np.array(means) * tokens
    found = Perplexity.of(losses, np.array(tokens))
    logs = [count * math.log(value) for count, value in zip(tokens, found.by_position, strict=True) if count]
    assert math.log(found.whole) == pytest.approx(sum(logs) / sum(tokens), abs=1e-9)
    assert [math.isnan(value) for value in found.by_position] == [count == 0 for count in tokens]


@given(st.integers(1, 700), st.integers(0, 699))
def test_a_cut_moves_no_value_to_another_band(length: int, cut: int) -> None:
    values = np.arange(1.0, length + 1)[None]
    cut = min(cut, length)
    parts = band_sums(values[:, :cut], first=1) + band_sums(values[:, cut:], first=1 + cut)
    expected = [values[0, max(begin - 1, 0) : None if end is None else end - 1].sum() for begin, end in BANDS]
    assert parts.tolist() == band_sums(values, first=1).tolist() == [expected]


def test_what_is_beyond_a_float_or_no_number_is_infinite() -> None:
    found = Perplexity.of(np.array([1e6, math.nan, 0.0, 1.0]), np.array([1, 1, 0, 1]))
    assert found.whole == found.by_position[0] == found.by_position[1] == math.inf
    assert Perplexity.of_values(found.values) == Perplexity.of_values(found.values) or math.isnan(found.by_position[2])
