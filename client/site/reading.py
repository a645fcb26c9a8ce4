"""What a study reads of a site's windows: in a step, and over all of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...common.study.study import PrivacyUnit, Study

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a study reads: windows of ``max_tokens``, up to ``windows_per_unit`` of a drawn unit at random in each step.

    ``overlap`` tokens of a window are the last ones of the window before.
    """

    max_tokens: int
    overlap: int
    unit: PrivacyUnit
    windows_per_unit: int
    sampling_probability: float
    steps: int

    @classmethod
    def of(cls, study: Study) -> Self:
        """How a study does."""
        return cls(
            max_tokens=study.data.max_tokens,
            overlap=study.data.overlap,
            unit=study.privacy.unit,
            windows_per_unit=study.data.records_per_unit,
            sampling_probability=study.privacy.sampling_probability,
            steps=study.training.rounds * study.training.local_steps,
        )

    def units(self, of_records: NDArray[Any], records_each: Counts) -> NDArray[Any]:
        """What each unit has of what each record has: [units]; ``records_each`` of each patient, in their order."""
        if self.unit == "record":
            return of_records
        return np.add.reduceat(of_records, np.cumsum(records_each) - records_each)

    def in_a_step(self, windows: Counts) -> Counts:
        """How many windows a step reads of each unit, where it is drawn: [units]."""
        return np.minimum(windows, self.windows_per_unit)

    def share_read(self, windows: Counts) -> float:
        """The share of all windows that the study's steps read at least once, in expectation."""
        each = self.sampling_probability * self.in_a_step(windows) / windows
        return float(windows @ (1 - (1 - each) ** self.steps) / windows.sum())

    def padding(self, lengths: Counts, windows: Counts, batches: Mapping[int, int]) -> tuple[float, float]:
        """Which share of all that a step computes fills windows up, and which is in empty rows of batches, on average.

        ``lengths`` are all windows' tokens [windows], of which each unit has so many: ``windows`` [units]. ``batches``
        has how many windows are computed at a time, by the tokens that they are computed as.
        """
        from scipy.stats import binom

        ends = np.asarray(sorted(batches))
        places = np.searchsorted(ends, lengths)
        probability = np.repeat(self.sampling_probability * self.in_a_step(windows) / windows, windows)
        there, drawn = (np.bincount(places, weights, len(ends)) for weights in (None, probability))
        held = float(lengths @ probability)
        filled, empty = float(drawn @ ends) - held, 0.0
        for tokens, count, mean in zip(ends.tolist(), there.tolist(), drawn.tolist(), strict=True):
            far = int(12 * mean**0.5 + 12)  # beyond which there is nothing to add up
            numbers = np.arange(max(int(mean) - far, 0), min(int(mean) + far, count) + 1)
            odds = binom.pmf(numbers, count, min(mean / max(count, 1), 1.0))  # as if each were drawn by itself
            empty += tokens * float(odds @ (-numbers % batches[tokens]))
        computed = held + filled + empty
        return filled / computed, empty / computed

    def told(self, windows: Counts) -> str:
        """For people; ``windows`` are each unit's."""
        drawn = f"{100 * self.sampling_probability:.3g} %" if self.sampling_probability < 1 else "all"
        return (
            f"your text makes {windows.sum():,} windows of at most {self.max_tokens:,} tokens; a step draws {drawn} of "
            f"your {self.unit}s, and reads at most {self.windows_per_unit:,} of each, at random: over the "
            f"study's {self.steps:,} step{'s' * (self.steps > 1)}, {share_in_words(self.share_read(windows))} of your "
            "text is read at least once, on average"
        )


def windows_in(tokens: NDArray[np.float64], max_tokens: int, overlap: int) -> Counts:
    """How many windows texts of so many tokens make.

    >>> windows_in(np.array([0.0, 100, 101, 190, 191]), 100, 10)
    array([1, 1, 2, 2, 3])
    """
    return 1 + np.ceil(np.maximum(tokens - max_tokens, 0) / (max_tokens - overlap)).astype(np.int64)


def share_in_words(share: float) -> str:
    """A share for people.

    >>> share_in_words(0.0321), share_in_words(0.004), share_in_words(1.0)
    ('3 %', 'less than 1 %', 'all')
    """
    if share > 0.995:
        return "all"
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
