"""Integers modulo 2^bits: exact sums, no wrap, and nothing done to a share of the noise."""

from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.errors import StudyError
from grandrounds.common.secagg.encoding import FixedPoint, centred, residue_dtype, residues

INT64 = st.integers(-(2**63), 2**63 - 1)
BITS = st.sampled_from([16, 32])


@given(st.lists(INT64, min_size=1, max_size=20), BITS)
def test_residues_are_the_integers_modulo_two_to_the_bits_and_nothing_else(values: list[int], bits: int) -> None:
    assert residues(np.array(values), bits).tolist() == [value % 2**bits for value in values]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.integers(-(2**31), 2**31 - 1))
def test_the_centred_sum_is_exact_whenever_the_true_sum_fits(parts: list[int], total: int) -> None:
    parts.append(total - sum(parts))  # single values may be far outside, as single shares of the noise are
    added = np.zeros(1, dtype=residue_dtype(32))
    for part in parts:
        added += residues(np.array([part]), 32)
    assert centred(added).tolist() == [total]


@given(
    bits=BITS,
    update_range=st.floats(1e-6, 1e6),
    nominal_units=st.lists(st.integers(1, 10**6), min_size=1, max_size=100),
    sign=st.sampled_from([-1, 1]),
)
def test_no_sum_can_wrap(bits: Literal[16, 32], update_range: float, nominal_units: list[int], sign: int) -> None:
    fixed_point = FixedPoint(modulus_bits=bits, update_range=update_range, sites=len(nominal_units))
    total = sum(nominal_units)
    true_sum = 0
    added = np.zeros(1, dtype=residue_dtype(bits))
    for units in nominal_units:
        encoded = fixed_point.encode(np.array([sign * np.inf]), units / total)
        true_sum += int(centred(encoded)[0])
        added += encoded
    assert abs(true_sum) <= 2 ** (bits - 1) - 1
    assert int(centred(added)[0]) == true_sum


@given(
    update=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    nominal_units=st.lists(st.integers(1, 1000), min_size=1, max_size=20),
    bits=BITS,
)
def test_decoding_gives_the_weighted_mean_to_half_a_step_a_site(
    update: list[float], nominal_units: list[int], bits: Literal[16, 32]
) -> None:
    fixed_point = FixedPoint(modulus_bits=bits, update_range=1.0, sites=len(nominal_units))
    total = sum(nominal_units)
    added = np.zeros(len(update), dtype=residue_dtype(bits))
    for units in nominal_units:
        added += fixed_point.encode(np.array(update), units / total)
    decoded = fixed_point.decode(centred(added))
    expected = np.clip(update, -1.0, 1.0)
    assert np.max(np.abs(decoded - expected)) <= (len(nominal_units) / 2 + 1e-6) / fixed_point.scale


def test_the_scale_is_the_one_that_is_claimed() -> None:
    scale = FixedPoint(modulus_bits=16, update_range=0.25, sites=5).scale
    assert Fraction(scale) == (2**15 - 1 - Fraction(5, 2)) / Fraction(1, 4)


def test_what_is_not_a_number_counts_as_zero_and_infinities_are_clipped() -> None:
    fixed_point = FixedPoint(modulus_bits=32, update_range=0.5, sites=3)
    update = np.array([np.nan, np.inf, -np.inf, 0.5, -0.5, 1e300])
    encoded = centred(fixed_point.encode(update, 0.25)).tolist()
    top = round(0.5 * 0.25 * fixed_point.scale)
    assert encoded == [0, top, -top, top, -top, top]


def test_an_update_longer_than_a_block_is_encoded_as_its_pieces_are() -> None:
    fixed_point = FixedPoint(modulus_bits=32, update_range=1.0, sites=3)
    update = np.linspace(-1.5, 1.5, 70_001)
    whole = fixed_point.encode(update, 0.5)
    pieces = [fixed_point.encode(piece, 0.5) for piece in np.array_split(update, 7)]
    assert np.array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("update_range", [0.0, -1.0, np.nan, np.inf])
def test_a_range_that_leaves_nothing_is_refused(update_range: float) -> None:
    with pytest.raises(StudyError, match="update_range"):
        FixedPoint(modulus_bits=16, update_range=update_range, sites=3)


@pytest.mark.parametrize("sites", [0, 5000])
def test_more_sites_than_rounding_leaves_room_for_are_refused(sites: int) -> None:
    with pytest.raises(StudyError, match="sites"):
        FixedPoint(modulus_bits=16, update_range=1.0, sites=sites)


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_a_share_of_the_total_outside_zero_to_one_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="share of the total"):
        FixedPoint(modulus_bits=16, update_range=1.0, sites=3).encode(np.zeros(1), share)
