"""Who pays for the noise: what training gained on held-out text, for each group of people whom the text is about."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...common.model.perplexity import CONFIDENCE, Interval, Perplexity, by_patient
from ...common.schema import Section, Words
from .utility import Perplexity as Published
from .utility import published

FEWEST_PATIENTS: Final = 5
EVERYONE: Final = "everyone"
_Nats = Annotated[float, Field(allow_inf_nan=False)]


class Estimate(Section):
    """Nats per token, with the ends of a confidence interval over patients."""

    value: _Nats
    low: _Nats
    high: _Nats

    @classmethod
    def of(cls, interval: Interval) -> Self | None:
        """Of three decimals, as it is released; None where it is not finite."""
        ends = (interval.value, interval.low, interval.high)
        if not all(map(math.isfinite, ends)):
            return None
        value, low, high = (round(end, 3) for end in ends)
        return cls(value=value, low=low, high=high)


class InGroup(Section):
    """How well held-out text about a group is predicted, before training and after it.

    ``gain`` is what a token loses less after it; ``beyond_others`` by how much that is more than of all others of whom
    the ``trait`` is said, at a confidence that holds for all groups at once (Bonferroni). Of fewer than
    ``FEWEST_PATIENTS`` patients nothing is said.
    """

    trait: Words
    group: Words
    patients: Annotated[int, Field(ge=1)]
    before: Published | None = None
    after: Published | None = None
    gain: Estimate | None = None
    beyond_others: Estimate | None = None

    @property
    def is_too_small(self) -> bool:
        """Whether it has too few patients for anything to be said."""
        return self.patients < FEWEST_PATIENTS

    @property
    def is_worse(self) -> bool:
        """Whether training is shown to have made it worse, if only in that it has no finite perplexity any more."""
        return (self.gain is not None and self.gain.high < 0) or (self.before is not None and self.after is None)

    @property
    def gains_less(self) -> bool:
        """Whether it is shown to gain less than the others."""
        return self.beyond_others is not None and self.beyond_others.high < 0

    @property
    def row(self) -> dict[str, Any]:
        """As it stands in a report."""
        said = {"too_small": self.is_too_small, "worse": self.is_worse, "gains_less": self.gains_less}
        return {**self.model_dump(), **said}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """From its row in a report; raises KeyError, TypeError or ValidationError."""
        return cls.model_validate({name: row[name] for name in cls.model_fields})


def in_groups(
    evaluated: NDArray[np.float64], *, patients: Sequence[str], groups: Mapping[str, Sequence[str | None]]
) -> tuple[InGroup, ...]:
    """Quality of all records, and of each group of each trait.

    ``evaluated`` [3, records] are the tokens that were predicted of each record and the nats lost on it before training
    and after it, ``patients`` whose the records are, and ``groups`` what group each is in, None where it is not said.
    """
    there = evaluated[0] > 0
    patients = [patient for patient, any_token in zip(patients, there, strict=True) if any_token]
    groups = {
        trait: [value for value, any_token in zip(values, there, strict=True) if any_token]
        for trait, values in groups.items()
    }
    measured = _Measured(evaluated[:, there], patients)
    masks = {
        (trait, group): np.array([each == group for each in values])
        for trait, values in groups.items()
        for group in sorted({value for value in values if value is not None})
    }
    said = {trait: np.array([value is not None for value in values]) for trait, values in groups.items()}
    others = {place: said[place[0]] & ~mask for place, mask in masks.items()}
    compared = [
        place for place, mask in masks.items() if measured.is_enough(mask) and measured.is_enough(others[place])
    ]
    everyone = np.ones(len(patients), dtype=bool)
    return (
        measured.quality(EVERYONE, EVERYONE, everyone),
        *(
            measured.quality(
                *place,
                mask,
                others=others[place] if place in compared else None,
                confidence=1 - (1 - CONFIDENCE) / max(len(compared), 1),
            )
            for place, mask in masks.items()
        ),
    )


def verdict(groups: Sequence[InGroup]) -> str:
    """In a sentence, which groups are shown to be worse off than others; none where there are no groups.

    >>> verdict([InGroup(trait="sex", group="F", patients=3)])
    'No group is shown to gain less than the others, or to be worse than before training; one is too small to say.'
    """
    traits = [group for group in groups if group.trait != EVERYONE]
    if not traits:
        return ""
    small = sum(group.is_too_small for group in traits)
    ending = f"; {'one is' if small == 1 else f'{small} are'} too small to say." if small else "."
    worse = ", ".join(f"{group.trait}: {group.group}" for group in traits if group.is_worse)
    less = ", ".join(f"{group.trait}: {group.group}" for group in traits if group.gains_less)
    if not worse and not less:
        return f"No group is shown to gain less than the others, or to be worse than before training{ending}"
    said = [f"WORSE than before training for {worse}"] * bool(worse) + [
        f"LESS gained than by others for {less}"
    ] * bool(less)
    return "; ".join(said) + ending


class _Measured:
    """What was lost on each record before and after, by patient once a group is chosen."""

    def __init__(self, evaluated: NDArray[np.float64], patients: Sequence[str]) -> None:
        self._evaluated = evaluated
        self._patients = np.array(patients, dtype=object)

    def is_enough(self, mask: NDArray[np.bool_]) -> bool:
        return len(set(self._patients[mask])) >= FEWEST_PATIENTS

    def quality(
        self,
        trait: str,
        group: str,
        mask: NDArray[np.bool_],
        *,
        others: NDArray[np.bool_] | None = None,
        confidence: float = CONFIDENCE,
    ) -> InGroup:
        patients = len(set(self._patients[mask]))
        if patients < FEWEST_PATIENTS:
            return InGroup(trait=trait, group=group, patients=patients)
        tokens, *lost = self._evaluated[:, mask].sum(axis=1)
        before, after = (Perplexity.of(np.array([loss]), np.array([tokens])) for loss in lost)
        beyond = None if others is None else self._gain(mask, confidence).minus(self._gain(others, confidence))
        return InGroup(
            trait=trait,
            group=group,
            patients=patients,
            before=published(before.whole),
            after=published(after.whole),
            gain=Estimate.of(self._gain(mask, CONFIDENCE)),
            beyond_others=None if beyond is None else Estimate.of(beyond),
        )

    def _gain(self, mask: NDArray[np.bool_], confidence: float) -> Interval:
        patients = list(self._patients[mask])
        tokens, before, after = (by_patient(values, patients) for values in self._evaluated[:, mask])
        return Interval.per_token(before - after, tokens, confidence=confidence)
