"""Perplexity of held-out text: over all of it, by where in its record a token stands; intervals over patients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

# Positions of tokens in their record, from the first of a band to the first behind it. An adapter that was trained on
# the beginnings of records can help there and harm the rest, which one figure over whole records would not show.
BANDS: Final[tuple[tuple[int, int | None], ...]] = ((0, 64), (64, 128), (128, 256), (256, None))
_LARGEST_LOG: Final = math.log(np.finfo(np.float64).max)
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Token-weighted perplexity ``whole``, over all tokens, and ``by_position``, over those of each of ``BANDS``.

    Infinite where it is beyond a float or the model gives no figure; NaN in a band in which nothing is predicted.
    """

    whole: float
    by_position: tuple[float, ...]

    @classmethod
    def of(cls, losses: NDArray[np.float64], tokens: NDArray[np.int64]) -> Self:
        """From the summed losses (nats) [bands] and the number of predicted tokens [bands], of which one is not 0."""
        return cls(
            whole=_perplexity(losses.sum() / tokens.sum()),
            by_position=tuple(
                _perplexity(loss / count) if count else math.nan for loss, count in zip(losses, tokens, strict=True)
            ),
        )

    @classmethod
    def of_values(cls, values: NDArray[np.float64]) -> Self:
        """From ``values`` [1 + bands]."""
        whole, *by_position = (float(value) for value in values)
        return cls(whole=whole, by_position=tuple(by_position))

    @property
    def values(self) -> NDArray[np.float64]:
        """The whole and the bands as one row [1 + bands]."""
        return np.array([self.whole, *self.by_position])


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordLosses:
    """What is lost on each record: summed ``losses`` in nats, and predicted ``tokens``, both [records, bands]."""

    losses: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def perplexity(self) -> Perplexity:
        """Of all of them."""
        return Perplexity.of(self.losses.sum(axis=0), self.tokens.sum(axis=0))

    @property
    def whole(self) -> NDArray[np.float64]:
        """Tokens and losses over all bands [2, records]."""
        return np.stack([self.tokens.sum(axis=1).astype(np.float64), self.losses.sum(axis=1)])


# The row of an adapter that was not evaluated.
NOT_EVALUATED: Final = (math.nan,) * (1 + len(BANDS))


def band_sums(values: NDArray[np.float64], *, first: int) -> NDArray[np.float64]:
    """The sums [batch, bands] over the columns of ``values`` [batch, tokens] in each band; column 0 is at ``first``.

    >>> band_sums(np.ones((2, 100)), first=60)
    array([[ 4., 64., 32.,  0.],
           [ 4., 64., 32.,  0.]])
    """
    sums = []
    for begin, end in BANDS:
        stop = None if end is None else max(end - first, 0)
        sums.append(values[:, max(begin - first, 0) : stop].sum(axis=1))
    return np.stack(sums, axis=1)


def _perplexity(mean_loss: float) -> float:
    return math.exp(mean_loss) if mean_loss < _LARGEST_LOG else math.inf


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, and the ends of its confidence interval; both infinite where none exists."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A figure that is taken as it is."""
        return cls(value=value, low=value, high=value)

    @classmethod
    def per_token(
        cls, sums: NDArray[np.float64], tokens: NDArray[np.float64], *, confidence: float = CONFIDENCE
    ) -> Self:
        """The mean per token of ``sums`` [patients], each over ``tokens`` [patients], of patients drawn alike.

        A ratio estimator with its linearised variance (Cochran 1977, Sampling Techniques, 6.4) and Student's t: a
        patient is what is drawn, however many tokens it has. Paired where ``sums`` are differences.
        """
        from scipy.special import stdtrit

        patients, ratio = len(sums), float(sums.sum() / tokens.sum())
        if patients < 2:
            return cls(value=ratio, low=-math.inf, high=math.inf)
        spread = math.sqrt(patients / (patients - 1) * float(((sums - ratio * tokens) ** 2).sum())) / tokens.sum()
        half = float(stdtrit(patients - 1, (1 + confidence) / 2)) * float(spread)
        return cls(value=ratio, low=ratio - half, high=ratio + half)

    def minus(self, other: Self) -> Self:
        """The difference of two independent estimates, by the square-and-add method (Zou and Donner 2008)."""
        value = self.value - other.value
        return type(self)(
            value=value,
            low=value - math.hypot(self.value - self.low, other.high - other.value),
            high=value + math.hypot(self.high - self.value, other.value - other.low),
        )


def by_patient(values: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """The sums [patients] of ``values`` [records] over each patient's records, in the order of patients' identifiers.

    >>> by_patient(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"])
    array([2., 5.])
    """
    names, places = np.unique(np.array(patients, dtype=object), return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(places, weights=values, minlength=len(names)).astype(np.float64)
    return sums
