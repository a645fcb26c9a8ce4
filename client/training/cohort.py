"""The cohort: one site's privacy units, and the only door to them, a Poisson sample."""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from ...common.crypto.csprng import Stream
from ...common.errors import DataError, PrivacyError
from ...common.study.study import PrivacyUnit

T = TypeVar("T")
U = TypeVar("U")


class Cohort(Generic[T]):
    """One site's units, each a tuple of its records; how many there are is known only in here.

    *Formal guarantee.* ``draw`` is Poisson sampling as the accountant's events mean it (ARCHITECTURE.md, "Accounting";
    Abadi et al. 2016, section 3.1; Mironov, Talwar and Zhang 2019, definition 1): every unit is in with the same
    probability, at most q and short of it by less than 2**-64, whatever the other units do and whatever earlier draws
    did; of a draw above its cap a uniform subset is left, which ``common/privacy/draw_cap`` accounts for. A retry that
    calls it again is a fresh sample. The randomness is the CSPRNG's (``common/crypto/csprng``),
    under a key drawn inside each call; nothing can seed it.
    """

    def __init__(self, units: Sequence[Sequence[T]]) -> None:
        """Units that need not be in memory. Raises DataError when there is none, or one without a record."""
        self._units = units
        if not units or not all(map(len, units)):
            raise DataError(
                "the cohort has no patients, or one without a record",
                why="there is nothing to train on",
                fix="give data with at least one record for each patient",
            )

    @classmethod
    def stated(cls, units: Sequence[Sequence[T]], *, privacy_unit: PrivacyUnit, max_units: int) -> "Cohort[T]":
        """The cohort of a site that states its bound: DataError where there are more than ``max_units``."""
        if len(units) > max_units:
            raise DataError(
                f"the data have {len(units)} {privacy_unit}s, and the study states at most {max_units} (max_units)",
                why="the most that a step may read follows from it, and a step that reads more tells of its draw",
                fix="ask the study's author for a study that states more, with room to spare, or give fewer records",
            )
        return cls(units)

    def draw(self, *, sampling_probability: float, records_per_unit: int, cap: int) -> list[tuple[T, ...]]:
        """A fresh Poisson sample of the units, ``cap`` at most, with up to ``records_per_unit`` random records of each.

        An empty sample is a valid one. The records of a unit are a uniform subset, without replacement, and so are the
        units of a sample above the cap; a unit of which one cannot be read has none. Raises PrivacyError unless
        0 < ``sampling_probability`` <= 1, ``records_per_unit`` >= 1 and ``cap`` >= 1.
        """
        if not (0 < sampling_probability <= 1 and records_per_unit >= 1 and cap >= 1):
            raise PrivacyError(
                f"a sample of {records_per_unit} records a unit with probability {sampling_probability} does not exist",
                why="the accountant charges for a Poisson sample with a probability above 0 and up to 1",
                fix="choose a sampling probability in (0, 1] and at least one record a unit",
            )
        stream = Stream.fresh()
        # At q = 1 the bound is 2**64, above every word, and would not fit in one.
        bound = math.floor(math.ldexp(sampling_probability, 64))
        words = stream.words(len(self._units))
        drawn = np.flatnonzero(words < bound) if bound < 1 << 64 else np.arange(len(words))
        units = (self._units[number] for number in _random_subset(drawn.tolist(), cap, stream))
        return [_records(unit, _random_subset(range(len(unit)), records_per_unit, stream)) for unit in units]


def _random_subset(items: Sequence[U], limit: int, stream: Stream) -> tuple[U, ...]:
    """A uniform subset of ``limit`` items: those with the smallest of independent 64-bit keys, or all of them."""
    if len(items) <= limit:
        return tuple(items)
    return tuple(items[index] for index in np.argsort(stream.words(len(items)))[:limit])


def _records(unit: Sequence[T], places: Sequence[int]) -> tuple[T, ...]:
    """A unit's records at these places; none where one cannot be read, which is then no failure of the whole draw."""
    try:
        return tuple(unit[place] for place in places)
    except Exception:
        return ()
