"""Shamir's secret sharing of 32-byte secrets (Shamir 1979), in exact integers over a prime just above 2^256."""

from collections.abc import Mapping, Sequence

from ..crypto.csprng import below
from ..errors import ProtocolError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, *, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Shares of a 32-byte secret, one for each point, in order; any ``threshold`` of them recover it.

    Fewer are independent of the secret: the other coefficients are uniform and drawn here.
    """
    return evaluate([int.from_bytes(secret, "little"), *_random_coefficients(threshold - 1)], points)


def evaluate(coefficients: Sequence[int], points: Sequence[int]) -> list[bytes]:
    """The polynomial's values (constant term first) as shares. Points are in [1, 2^16), else ValueError."""
    if not all(1 <= point < 1 << 16 for point in points):
        raise ValueError("a share at point 0 would be the secret itself")
    return [_value(coefficients, point).to_bytes(SHARE_BYTES, "little") for point in points]


def check_share(share: bytes) -> None:
    """Raises ProtocolError unless ``share`` is the encoding of a field element."""
    if len(share) != SHARE_BYTES or int.from_bytes(share, "little") >= PRIME:
        raise ProtocolError(
            f"a share of {len(share)} bytes is no field element",
            why="a secret could not be put together from it",
            fix="find the site that sent it: it does not run the code in the manifest",
        )


def lagrange_weights(points: Sequence[int]) -> dict[int, int]:
    """What to multiply the share of each point with, so that the sum is the secret; for all secrets of one set."""
    if len(set(points)) != len(points):
        raise ValueError("a point occurs twice")
    weights = {}
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        weights[point] = numerator * pow(denominator, -1, PRIME) % PRIME
    return weights


def combine(weights: Mapping[int, int], shares: Mapping[int, bytes]) -> bytes:
    """The secret whose shares at the points of ``weights`` these are.

    Raises ProtocolError if the shares cannot be of a 32-byte secret; wrong shares that can must be found by comparing
    the secret with what was published of it.
    """
    value = sum(weight * int.from_bytes(shares[point], "little") for point, weight in weights.items()) % PRIME
    if value >= 1 << (8 * SECRET_BYTES):
        raise ProtocolError(
            "shares do not combine to a secret",
            why="at least one of them is not what the secret's owner sent",
            fix="abandon the attempt; a site in it does not run the code in the manifest",
        )
    return value.to_bytes(SECRET_BYTES, "little")


def _random_coefficients(count: int) -> list[int]:
    return [below(PRIME) for _ in range(count)]


def _value(coefficients: Sequence[int], point: int) -> int:
    # Points are small, so that the sum grows by a few bits a step and one reduction at the end is cheapest.
    total = 0
    for coefficient in reversed(coefficients):
        total = total * point + coefficient
    return total % PRIME
