"""Perplexity of held-out text: over all of it, and by where in its record a token stands."""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

# Positions of tokens in their record, from the first of a band to the first behind it. An adapter that was trained on
# the beginnings of records can help there and harm the rest, which one figure over whole records would not show.
BANDS: Final[tuple[tuple[int, int | None], ...]] = ((0, 64), (64, 128), (128, 256), (256, None))
_LARGEST_LOG: Final = math.log(np.finfo(np.float64).max)


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


# The row of an adapter that was not evaluated.
NOT_EVALUATED: Final = (math.nan,) * (1 + len(BANDS))


def band_sums(values: NDArray[np.float64], *, first: int) -> NDArray[np.float64]:
    """The sums [bands] over the columns of ``values`` [batch, tokens] that lie in each band; column 0 is at ``first``.

    >>> band_sums(np.ones((2, 100)), first=60)
    array([  8., 128.,  64.,   0.])
    """
    columns = values.sum(axis=0)
    sums = []
    for begin, end in BANDS:
        stop = None if end is None else max(end - first, 0)
        sums.append(columns[max(begin - first, 0) : stop].sum())
    return np.array(sums)


def _perplexity(mean_loss: float) -> float:
    return math.exp(mean_loss) if mean_loss < _LARGEST_LOG else math.inf
