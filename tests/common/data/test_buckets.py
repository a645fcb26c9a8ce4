from itertools import pairwise

import numpy as np
import pytest

from grandrounds.common.data.buckets import bucket_lengths

RNG = np.random.default_rng(6)
NOTES = {
    "reports of 30 to 120 tokens": RNG.integers(30, 121, 20_000),
    "notes of 150 to 400": RNG.integers(150, 401, 20_000),
    "notes of a median of 300": RNG.lognormal(np.log(300), 0.8, 20_000).astype(int) + 1,
    "notes of a median of 1,987": RNG.lognormal(np.log(1987), 0.6, 20_000).astype(int) + 1,
}


def test_lengths_are_few_and_rise_to_the_longest_window_whatever_it_is() -> None:
    for max_tokens in range(8, 8193):
        lengths = bucket_lengths(max_tokens)
        assert lengths[-1] == max_tokens and list(lengths) == sorted(set(lengths))
        assert len(lengths) <= 33 and lengths[0] == min(16, max_tokens)
        assert all(longer <= max(1.3 * shorter, shorter + 12) for shorter, longer in pairwise(lengths))


@pytest.mark.parametrize("max_tokens", [384, 512, 2048])
@pytest.mark.parametrize("notes", NOTES)
def test_at_most_a_tenth_of_what_is_computed_is_padding(notes: str, max_tokens: int) -> None:
    windows = np.concatenate([np.diff([*range(0, length, max_tokens), length]) for length in NOTES[notes]])
    lengths = np.array(bucket_lengths(max_tokens))
    padded = lengths[np.searchsorted(lengths, windows)]
    assert 1 - windows.sum() / padded.sum() <= 0.1
    assert 1 - windows.sum() / (len(windows) * max_tokens) > 0.1 or notes == "notes of a median of 1,987", "one length"
