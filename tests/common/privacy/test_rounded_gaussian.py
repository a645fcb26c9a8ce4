import hashlib
import hmac
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import chi2
from support.places import VECTORS

from grandrounds.common.crypto.csprng import Stream
from grandrounds.common.privacy import rounded_gaussian
from grandrounds.common.privacy.rounded_gaussian import add_rounded_gaussian, from_words, subtract_rounded_gaussian

KNOWN = json.loads((VECTORS / "rounded_gaussian.json").read_text())
CASES = KNOWN["cases"]
FALSE_ALARM = 1e-8  # of each statistical test here; all of them together stay below 1e-6
HALF = 1 << 63
KEY = bytes(range(32))
Draws = NDArray[np.int64]


def _draw(word: int, further: list[int], stddev: int) -> int:
    words: Iterator[int] = chain(further, repeat(HALF))
    return int(from_words(np.array([word], dtype=np.uint64), stddev, lambda _: lambda: next(words))[0])


def _wrong_cases() -> int:
    return sum(
        _draw(int(word, 16), [int(w, 16) for w in further], stddev) != draw for stddev, word, further, draw in CASES
    )


def test_words_that_straddle_half_integers_draw_what_mpmath_draws() -> None:
    assert _wrong_cases() == 0


def test_a_block_of_words_draws_what_each_word_draws_alone() -> None:
    for stddev in {case[0] for case in CASES}:
        cases = [case for case in CASES if case[0] == stddev]
        words = np.array([int(case[1], 16) for case in cases], dtype=np.uint64)
        block = from_words(words, stddev, lambda _: lambda: HALF)
        assert block.tolist() == [_draw(int(word), [], stddev) for word in words]


@pytest.mark.parametrize("name, value", [("_GUARD", -1.0), ("_FAST_LIMIT", 40.0)])
def test_double_precision_alone_would_round_wrongly(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    monkeypatch.setattr(rounded_gaussian, name, value)
    assert _wrong_cases() > 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_double_that_is_no_number_is_decided_exactly(monkeypatch: pytest.MonkeyPatch, broken: float) -> None:
    words = np.array([1 << 40, 1 << 61, (1 << 63) + (1 << 61)], dtype=np.uint64)
    expected = from_words(words, 1000, lambda _: lambda: 0)

    def ndtri_with_a_fault(p: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        ndtri(p, out=out)
        out[0] = broken

    monkeypatch.setattr("scipy.special.ndtri", ndtri_with_a_fault)
    assert from_words(words, 1000, lambda _: lambda: 0).tolist() == expected.tolist()


def test_two_threads_never_decide_at_once_since_mpmath_has_one_precision_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erfc, met, precisions = mpmath.erfc, threading.Barrier(2), []

    def beside_another(value: mpmath.mpf) -> mpmath.mpf:
        try:
            met.wait(0.05)  # the other thread is in here, too
        except threading.BrokenBarrierError:
            pass
        else:
            precisions.append(mpmath.mp.prec)
        return erfc(value)

    monkeypatch.setattr(mpmath, "erfc", beside_another)
    stddev, word, further, draw = next((s, int(w, 16), f, d) for s, w, f, d in CASES if f)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(_draw, [word] * 2, [[int(w, 16) for w in further]] * 2, [stddev] * 2))
    assert drawn == [draw, draw]
    assert not precisions


@given(
    stddev=st.sampled_from([64, 1000, 1 << 17, 1 << 30]),
    position=st.floats(0, 9),
    offset=st.integers(-(1 << 140), 1 << 140),
    negative=st.booleans(),
)
def test_any_word_near_any_half_integer_agrees_with_another_inversion(
    stddev: int, position: float, offset: int, negative: bool
) -> None:
    with mpmath.workprec(600):
        half_integer = int(position * stddev) + mpmath.mpf(0.5)
        tail = mpmath.erfc(half_integer / stddev / mpmath.sqrt(2)) / 2
        bits = min(max(int(mpmath.ldexp(tail, 256)) + offset, 1), (1 << 255) - 1)
        magnitude = stddev * mpmath.sqrt(2) * mpmath.erfinv(1 - mpmath.ldexp(2 * bits + 1, -256))  # HALF follows
        expected = int(mpmath.floor(magnitude + mpmath.mpf(0.5)))
    words = [bits >> 192 | negative << 63, *(bits >> shift & (1 << 64) - 1 for shift in (128, 64, 0))]
    assert _draw(words[0], words[1:], stddev) == (-expected if negative else expected)


def test_the_inverse_of_the_tail_is_as_accurate_as_the_error_budget_says() -> None:
    entropy = random.SystemRandom().getrandbits(64)
    generator = random.Random(entropy)
    worst = 0.0
    for _ in range(3000):
        # Uniform in the quantile, up to 5 deviations, rather than in the probability: every branch is tried.
        p = float(ndtr(-generator.uniform(0, 5)))
        with mpmath.workprec(120):
            exact = -mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(p))
            worst = max(worst, abs(float(ndtri(p) - exact)))
    assert worst < 2e-15, f"error {worst}, entropy {entropy}"


def test_the_error_budget_fits_within_the_guard() -> None:
    density_at_5 = float(np.exp(-12.5) / np.sqrt(2 * np.pi))
    budget = 2.0**-65 / density_at_5 + 1.26 * 2.0**-53 + 2e-15 + 5 * 2.0**-53
    assert budget < rounded_gaussian._GUARD / 5


def _p_value(draws: Draws, stddev: int) -> float:
    """The least of three p-values: chi-square against the exact probabilities, mean, and variance."""
    mean_deviations = abs(draws.mean()) / stddev * np.sqrt(len(draws))
    # A rounded Gaussian's variance is stddev^2 + 1/12, to 10^-17000 at 64 (Sheppard's correction).
    variance = np.mean((draws / stddev) ** 2) / (1 + 1 / (12 * stddev**2))
    variance_deviations = abs(variance - 1) * np.sqrt(len(draws) / 2)
    return float(min(_chi_square_p(draws, stddev), 2 * ndtr(-mean_deviations), 2 * ndtr(-variance_deviations)))


def _chi_square_p(draws: Draws, stddev: int) -> float:
    """The p-value of the draws against the exact probabilities, over up to 800 sets of consecutive integers."""
    inner = np.unique(np.rint(stddev * ndtri(np.linspace(0, 1, 801)[1:-1]))).astype(
        np.int64
    )  # sets end here, inclusive
    edges = (inner + 0.5) / stddev
    below = ndtr(edges)
    above = ndtr(-edges)
    probabilities = np.concatenate([below[:1], np.where(edges[1:] < 0, np.diff(below), -np.diff(above)), above[-1:]])
    counts = np.bincount(np.searchsorted(inner, draws), minlength=len(probabilities))
    expected = probabilities * len(draws)
    return float(chi2.sf(np.sum((counts - expected) ** 2 / expected), len(probabilities) - 1))


def _fresh(stddev: int, count: int = 1_000_000) -> Draws:
    total = np.zeros(count, dtype=np.int64)
    add_rounded_gaussian(total, stddev)
    return total


@pytest.mark.parametrize("stddev", [64, 65, 100, 1000, 1 << 17, (1 << 30) - 1, 1 << 30])
def test_the_draws_have_the_exact_probabilities(stddev: int) -> None:
    assert _p_value(_fresh(stddev), stddev) > FALSE_ALARM


@pytest.mark.parametrize("stddev", [1000, 1 << 17, 1 << 30])
def test_the_low_bits_of_wide_noise_are_uniform(stddev: int) -> None:
    # For these deviations the residues modulo 64 are uniform to far below what a million draws can see.
    counts = np.bincount(_fresh(stddev) % 64, minlength=64)
    expected = 1_000_000 / 64
    assert chi2.sf(np.sum((counts - expected) ** 2) / expected, 63) > FALSE_ALARM


def test_the_tails_have_the_exact_probability() -> None:
    draws = np.concatenate([_fresh(64, 4_000_000) for _ in range(2)])
    expected = 2 * float(ndtr(-(4 * 64 - 0.5) / 64)) * len(draws)
    beyond = int(np.sum(np.abs(draws) >= 4 * 64))
    assert abs(beyond - expected) < 6 * np.sqrt(expected)  # false alarm below 1e-8


BROKEN: dict[str, Callable[[Draws, int], Draws]] = {
    "forgotten": lambda draws, stddev: np.zeros_like(draws),
    "rounded towards zero": lambda draws, stddev: np.trunc(_continuous(stddev)).astype(np.int64),
    "rounded down": lambda draws, stddev: np.floor(_continuous(stddev)).astype(np.int64),
    "the variance taken for the deviation": lambda draws, stddev: _fresh(stddev * stddev),
    "without a sign": lambda draws, stddev: np.abs(draws),
    "no zeros": lambda draws, stddev: draws + (draws == 0),
    "half the deviation": lambda draws, stddev: draws // 2,
    "one part in a hundred too narrow": lambda draws, stddev: np.rint(draws * 0.99).astype(np.int64),
}


def _continuous(stddev: int) -> NDArray[np.float64]:
    return np.random.default_rng().normal(0, stddev, 1_000_000)


@pytest.mark.parametrize("name", BROKEN)
def test_a_sampler_that_is_wrong_fails_the_same_test(name: str) -> None:
    assert _p_value(BROKEN[name](_fresh(64), 64), 64) < FALSE_ALARM


def test_two_runs_share_no_randomness_and_nothing_seeds_them() -> None:
    runs = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        runs.append(_fresh(1 << 30, 100_000))
    # Two draws coincide with probability 1 / (2 sqrt(pi) 2^30): seeing 3 among 100,000 has probability below 1e-14.
    assert np.sum(runs[0] == runs[1]) < 3
    correlation = float(np.corrcoef(runs[0], runs[1])[0, 1])
    assert abs(correlation) * np.sqrt(100_000) < 6


def test_no_stretch_of_a_long_vector_repeats() -> None:
    draws = _fresh(1 << 30, 100_000)
    assert len(np.unique(draws)) > 100_000 - 20  # about 1.3 pairs coincide by chance


def test_noise_is_added_to_what_is_there() -> None:
    start = np.arange(20_000, dtype=np.int64) * (1 << 40)
    total = start.copy()
    add_rounded_gaussian(total, 64)
    noise = total - start
    assert 0 < np.abs(noise).max() < 64 * 12
    assert (noise != 0).mean() > 0.98


def test_the_exact_path_asks_for_words_of_each_draw_alone() -> None:
    streams = [Stream(bytes([number]) * 32) for number in range(50)]  # known keys: fresh ones can coincide by chance
    asked: list[int] = []

    def further(index: int) -> Callable[[], int]:
        asked.append(index)
        return lambda: int(streams[index].words(1)[0])

    words = np.zeros(50, dtype=np.uint64)  # the farthest tail, never certain
    draws = from_words(words, 1 << 20, further)
    assert asked == list(range(50))
    assert len(np.unique(draws)) == 50


def test_a_key_draws_what_its_words_decide_each() -> None:
    """Written once more, draw by draw: three parts' keys, and the words that a draw takes beyond its first."""

    def expand(key: bytes, label: bytes, number: int | None = None) -> bytes:
        at = b"" if number is None else number.to_bytes(4, "little")
        return hmac.new(key, b"grandrounds/noise/v1/" + label + b"\n" + at + b"\x01", "sha256").digest()

    count, stddev = (1 << 18) + 3, (1 << 30) - 1
    drawn = _keyed(count, stddev)
    for index in [*range(40), (1 << 18) - 1, *range(1 << 18, count)]:
        part, place = divmod(index, 1 << 18)
        key = expand(KEY, b"part", part)
        word = Stream(expand(key, b"words")).words(place + 1)[place]
        further = Stream(expand(key, b"further", place)).words(4).tolist()
        assert drawn[index] == _draw(int(word), further, stddev)


def _wrong_hashes() -> int:
    known, places = KNOWN["keyed"], [0, 1, 2, (1 << 18) - 1, 1 << 18, -1]
    assert bytes.fromhex(known["key"]) == KEY
    wrong = 0
    for stddev, digest, some in known["cases"]:
        drawn = _keyed(known["count"], stddev)
        wrong += (hashlib.sha256(drawn.tobytes()).hexdigest(), drawn[places].tolist()) != (digest, some)
    return wrong


def test_what_a_key_draws_has_known_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine: a server that drew other layers than its sites would add noise where it is to take it off."""
    assert _wrong_hashes() == 0
    monkeypatch.setattr(rounded_gaussian, "_PART", 1 << 17)
    assert _wrong_hashes() == len(KNOWN["keyed"]["cases"])


def _keyed(count: int, stddev: int, dtype: str = "<i8") -> Draws:
    total = np.zeros(count, dtype=dtype)
    add_rounded_gaussian(total, stddev, KEY)
    return total


def test_what_a_key_draws_is_the_same_whatever_machine_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose doubles leave a hundred times as many draws open, and which has one processor."""
    drawn = _keyed(30_000, 1 << 20)
    monkeypatch.setattr(rounded_gaussian, "_GUARD", 100 * 2.0**-43)
    monkeypatch.setattr(rounded_gaussian, "_FAST_LIMIT", 3.0)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert np.array_equal(_keyed(30_000, 1 << 20), drawn)


def test_what_a_key_added_it_takes_away_again_of_residues_too() -> None:
    count = (1 << 18) + 5
    start = np.arange(count, dtype="<u4") * np.uint32(2_654_435_761)
    residues = start.copy()
    add_rounded_gaussian(residues, 1 << 20, KEY)
    assert np.array_equal(residues, start + _keyed(count, 1 << 20).astype("<u4"))
    subtract_rounded_gaussian(residues, 1 << 20, KEY)
    assert np.array_equal(residues, start)


def test_another_key_takes_away_something_else() -> None:
    total = _keyed(1_000, 64)
    subtract_rounded_gaussian(total, 64, bytes(31) + b"\x01")
    assert np.std(total) > 80  # of 64 * sqrt(2)


@pytest.mark.parametrize("stddev", [0, 63, (1 << 30) + 1, -64])
def test_a_deviation_outside_the_proved_range_is_refused(stddev: int) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        add_rounded_gaussian(np.zeros(3, dtype=np.int64), stddev)


@pytest.mark.parametrize("total", [np.zeros(3, dtype=np.int32), np.zeros(3), np.zeros((3, 2), dtype=np.int64)])
def test_noise_is_added_to_vectors_of_int64_and_of_residues_only(total: Draws) -> None:
    with pytest.raises(ValueError, match="int64"):
        add_rounded_gaussian(total, 64)
