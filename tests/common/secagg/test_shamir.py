"""Shares: any t recover the secret, fewer say nothing, and what is no share is refused."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.common.errors import ProtocolError
from grandrounds.common.secagg import shamir

SECRETS = st.binary(min_size=32, max_size=32)


def recover(points: tuple[int, ...], shares: dict[int, bytes]) -> bytes:
    return shamir.combine(shamir.lagrange_weights(points), shares)


def test_the_field_is_a_prime_that_holds_every_secret() -> None:
    # Fermat to 40 fixed bases; the number is a known prime and no adversary chose it.
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in range(2, 42))
    assert shamir.PRIME > 2**256


@settings(max_examples=25)
@given(secret=SECRETS, data=st.data())
def test_any_threshold_of_the_shares_recovers_the_secret(secret: bytes, data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 12))
    threshold = data.draw(st.integers(2, sites))
    points = data.draw(st.lists(st.integers(1, 100), min_size=sites, max_size=sites, unique=True))
    shares = dict(zip(points, shamir.split(secret, threshold=threshold, points=points), strict=True))
    chosen = tuple(data.draw(st.permutations(points))[:threshold])
    assert recover(chosen, shares) == secret


@pytest.mark.parametrize("threshold", range(2, 7))
def test_one_share_too_few_recovers_something_else(threshold: int) -> None:
    shares = dict(enumerate(shamir.split(b"\x07" * 32, threshold=threshold, points=range(1, 8)), start=1))
    for chosen in itertools.combinations(shares, threshold - 1):
        weights = shamir.lagrange_weights(chosen)
        value = sum(weights[point] * _value(shares[point]) for point in chosen) % shamir.PRIME
        assert value != int.from_bytes(b"\x07" * 32, "little")  # equal by chance with probability 2^-256


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_largest_secret_survive(secret: bytes) -> None:
    shares = dict(enumerate(shamir.split(secret, threshold=3, points=range(1, 6)), start=1))
    assert all(recover(chosen, shares) == secret for chosen in itertools.combinations(range(1, 6), 3))


@given(secret=SECRETS, other=SECRETS)
@settings(max_examples=25)
def test_fewer_than_threshold_shares_fit_every_secret(secret: bytes, other: bytes) -> None:
    first, second = shamir.split(secret, threshold=3, points=[1, 2])
    # The polynomial of degree 2 through (0, other), (1, first), (2, second) exists: it explains the two shares as well.
    third = _interpolate({0: int.from_bytes(other, "little"), 1: _value(first), 2: _value(second)}, at=3)
    shares = {1: first, 2: second, 3: third.to_bytes(shamir.SHARE_BYTES, "little")}
    assert recover((1, 2, 3), shares) == other


def test_two_sharings_of_one_secret_have_nothing_in_common() -> None:
    one = shamir.split(bytes(32), threshold=3, points=range(1, 6))
    other = shamir.split(bytes(32), threshold=3, points=range(1, 6))
    assert not set(one) & set(other)


def test_the_secret_is_never_a_share() -> None:
    with pytest.raises(ValueError, match="point 0"):
        shamir.split(bytes(32), threshold=2, points=[0, 1])


def test_a_point_given_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        shamir.lagrange_weights([1, 2, 1])


@pytest.mark.parametrize(
    "share", [b"", bytes(32), bytes(34), shamir.PRIME.to_bytes(33, "little"), b"\xff" * 33], ids=len
)
def test_what_is_no_field_element_is_refused(share: bytes) -> None:
    with pytest.raises(ProtocolError, match="no field element"):
        shamir.check_share(share)


def test_a_field_element_is_accepted() -> None:
    shamir.check_share((shamir.PRIME - 1).to_bytes(33, "little"))


def test_shares_that_combine_to_no_secret_are_refused() -> None:
    beyond = (2**256).to_bytes(33, "little")
    with pytest.raises(ProtocolError, match="do not combine"):
        recover((1, 2), {1: beyond, 2: beyond})


def _value(share: bytes) -> int:
    return int.from_bytes(share, "little")


def _interpolate(values: dict[int, int], *, at: int) -> int:
    total = 0
    for point, value in values.items():
        weight = 1
        for other in values.keys() - {point}:
            weight = weight * (at - other) * pow(point - other, -1, shamir.PRIME)
        total += value * weight
    return total % shamir.PRIME
