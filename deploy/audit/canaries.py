"""Gradient canaries: units of a twin that have no records, and whose gradient is one direction, far above the norm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...client.training.cohort import Cohort
from ...client.training.grad_samples import GradSampler, Shape
from ...client.training.ranks import ALONE
from ...common.audit.coins import bits_of, coins
from ...common.crypto.csprng import Stream, derived_key
from ...common.errors import StudyError
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from .directions import Directions

_HOMES_LABEL: Final = b"grandrounds/audit/v1/homes\n"
# Foils for each canary: directions that no unit of the twin has.
_FOILS: Final = 16
# Directions by which the noise is measured, for each release; and at least.
_GAUGES_PER_RELEASE: Final = 20
_LEAST_GAUGES: Final = 200
_MOST_GAUGES: Final = 20_000
# How far above the clipping norm a canary's gradient is, so that what bounds it is the code that clips.
_LENGTH: Final = 100.0
_AT_A_TIME: Final = 1 << 24  # numbers of canaries' gradients
_MOST_ROWS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Who is in the twin, where, and by which directions it is judged.

    The first ``count`` directions are the canaries', then come ``foils``, which nobody has, then ``gauges``, by which
    noise is measured and no score is made, then one for each site: a unit that all know, so that no cohort is empty.
    Bits (a fair coin for each canary) and homes (``copies`` of the sites that hold canaries, for each direction) follow
    from the seed.
    """

    directions: Directions
    count: int
    foils: int
    gauges: int
    homes_of: tuple[str, ...]
    sites: tuple[str, ...]
    copies: int

    @classmethod
    def planted(
        cls,
        count: int,
        *,
        dimension: int,
        releases: int,
        homes_of: Sequence[str],
        sites: Sequence[str],
        copies: int,
        seed: bytes,
    ) -> Self:
        """``count`` canaries at ``homes_of``, of ``sites``; raises StudyError where there are too few directions."""
        gauges = _gauges(dimension=dimension, releases=releases)
        foils = min(_FOILS * count, dimension - count - gauges - len(sites))
        most = room_for_canaries(dimension=dimension, releases=releases, sites=len(sites))
        if count > most:
            raise StudyError(
                f"{count} canaries in an adapter of {dimension} numbers",
                why="each points in a direction of its own, and as many are needed that nobody has",
                fix=f"give --canaries {most} or fewer" if most else "audit a study of a larger adapter",
            )
        return cls(
            directions=Directions(dimension=dimension, seed=seed),
            count=count,
            foils=foils,
            gauges=gauges,
            homes_of=tuple(homes_of),
            sites=tuple(sites),
            copies=copies,
        )

    @property
    def judged(self) -> int:
        """How many directions are looked at in a sum: all but those of the sites."""
        return self.count + self.foils + self.gauges

    @cached_property
    def bits(self) -> NDArray[np.bool_]:
        """Which canaries are in, bool [count]."""
        return bits_of(coins("gradient", self.count, seed=self.directions.seed))

    @cached_property
    def homes(self) -> NDArray[np.intp]:
        """At which sites a direction is, or would be: numbers of ``homes_of``, [judged, copies]."""
        words = Stream(derived_key(self.directions.seed, _HOMES_LABEL)).words(self.judged)
        first = (words % np.uint64(len(self.homes_of))).astype(np.intp)
        return (first[:, None] + np.arange(self.copies)) % len(self.homes_of)

    @cached_property
    def units(self) -> Mapping[str, Sequence[tuple[Example]]]:
        """Each site's units, of one record each, which says no more than the number of a direction."""
        held: dict[str, list[int]] = {site: [self.judged + place] for place, site in enumerate(self.sites)}
        for canary in map(int, np.flatnonzero(self.bits)):
            for home in self.homes[canary]:
                held[self.homes_of[home]].append(canary)
        return {site: [(_example_of(number),) for number in numbers] for site, numbers in held.items()}

    def cohort(self, site: str, *, max_units: int) -> Cohort[Example]:
        """What a site's steps draw from."""
        return Cohort.stated(self.units[site], privacy_unit="patient", max_units=max_units)


class CanarySampler(GradSampler):
    """What a step is told to be the gradients of its records: the directions that these are the numbers of.

    It stands where a language model is else, and nothing of what follows knows: draw, clipping, integers, sum, noise.
    """

    def __init__(self, directions: Directions, *, clipping_norm: float) -> None:
        self.ranks = ALONE
        self.model = cast(LanguageModel, _NoModel(directions.dimension))
        self.shapes = (Shape(1, max(1, min(_MOST_ROWS, _AT_A_TIME // directions.dimension))),)
        self._directions = directions
        self._length = _LENGTH * clipping_norm

    def shape_of(self, example: Example) -> Shape:
        """The one shape there is."""
        return self.shapes[0]

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """The canaries' gradients, float32 [examples, d]: all longer than any clipping norm."""
        rows = self._directions.rows([int(example.token_ids[0]) for example in examples])
        return torch.from_numpy((self._length * rows).astype(np.float32))


class _Layout:
    def __init__(self, dimension: int) -> None:
        self.dimension = dimension


class _NoModel:
    """What a step asks of a model, where there is none."""

    def __init__(self, dimension: int) -> None:
        self.layout = _Layout(dimension)
        self.device = torch.device("cpu")

    def set_adapter(self, vector: object) -> None:
        """A canary's gradient is the same at every adapter."""

    def check_tokens(self, token_ids: object, labels: object) -> None:
        """The number of a direction is no token."""


def room_for_canaries(*, dimension: int, releases: int, sites: int) -> int:
    """The most canaries in an adapter of that ``dimension``: each takes a direction, and one that nobody has."""
    return max(0, (dimension - _gauges(dimension=dimension, releases=releases) - sites) // 2)


def _gauges(*, dimension: int, releases: int) -> int:
    return min(max(_LEAST_GAUGES, _GAUGES_PER_RELEASE * releases), _MOST_GAUGES, dimension // 4)


def _example_of(number: int) -> Example:
    numbers = np.array([number], dtype=np.int32)
    return Example(token_ids=numbers, labels=numbers)
