"""Which runs a benchmark has: every way, at every ε where it claims one, in every case."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Self

from pydantic import Field, field_validator

from ....common.model.devices import PROCESSORS, Devices
from ....common.schema import Section, validated
from ...builtin.patients import Split
from ...simulation.settings import MAX_BUILTIN_SITES
from .ways import NOISY, WAYS, Case, Run, Way

_Epsilon = Annotated[float, Field(ge=0.01, le=100, strict=False)]
_Sites = Annotated[int, Field(ge=3, le=MAX_BUILTIN_SITES, strict=False)]
_Patients = Annotated[int, Field(ge=3, le=100_000, strict=False)]


class Grid(Section):
    """What is varied. ``seeds`` are consecutive, from ``first_seed``; every run computes on ``device``, one or several.

    >>> grid = Grid.read(ways="pooled,noise-off", epsilon="2,4", sites="5", patients="20", split="iid", seeds=1,
    ...     first_seed=7)
    >>> for run in grid.runs():
    ...     print(run)
    pooled ε=2, 5 sites, 20 patients (iid), seed 7
    pooled ε=4, 5 sites, 20 patients (iid), seed 7
    noise-off, 5 sites, 20 patients (iid), seed 7
    """

    ways: Annotated[tuple[Way, ...], Field(min_length=1, strict=False)]
    epsilon: Annotated[tuple[_Epsilon, ...], Field(min_length=1, strict=False)]
    sites: Annotated[tuple[_Sites, ...], Field(min_length=1, strict=False)]
    patients: Annotated[tuple[_Patients, ...], Field(min_length=1, strict=False)]
    split: Annotated[tuple[Split, ...], Field(min_length=1, strict=False)]
    seeds: int
    first_seed: int
    device: Devices = (PROCESSORS,)

    @classmethod
    def read(cls, **given: Any) -> Self:
        """From lists as a command line has them, with commas; ``all`` stands for every way. Raises StudyError."""
        return validated(
            cls,
            {name: _listed(value) for name, value in given.items()},
            why="they say what is compared",
            fix="correct the options of these names",
        )

    @field_validator("ways", mode="before")
    @classmethod
    def _all(cls, ways: Any) -> Any:
        return WAYS if ways == ["all"] else ways

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that every line of the table soon has a figure. Raises StudyError."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        for seed, sites, patients, split in product(seeds, self.sites, self.patients, self.split):
            case = Case(sites=sites, patients=patients, split=split, seed=seed)
            for way in self.ways:
                for epsilon in self.epsilon if way in NOISY else (None,):
                    yield Run(way=way, epsilon=epsilon, case=case)


def _listed(value: Any) -> Any:
    return list(dict.fromkeys(map(str.strip, value.split(",")))) if isinstance(value, str) else value
