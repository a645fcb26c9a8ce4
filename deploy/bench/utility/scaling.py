"""How perplexity falls with patients: a power law through what was measured, read backwards with its uncertainty."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from ....common.errors import StudyError
from ....common.schema import known
from ....common.study.study import DEFAULT_TARGET_EPSILON, Study
from .row import Row

_CONFIDENCE: Final = 0.95
_MOST: Final = 1e12


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Perplexity = e^level × (patients × rounds)^slope, by least squares of logarithms over ``count`` runs.

    ``deviation`` is that of a run's log-perplexity about the line; ``centre`` and ``spread`` are the mean of
    ln(patients × rounds) and the sum of its squared differences from it; ``range`` is what was measured.
    """

    level: float
    slope: float
    deviation: float
    centre: float
    spread: float
    count: int
    range: tuple[float, float]

    @classmethod
    def fit(cls, seen: Sequence[float], perplexities: Sequence[float]) -> Self:
        """Through runs that have ``seen`` so many patients × rounds. Raises StudyError where these are too few.

        >>> law = PowerLaw.fit([100, 200, 400, 800], [16.0, 8.0, 4.0, 2.0])
        >>> round(law.slope, 6), round(law.needed(5.0)[1])
        (-1.0, 320)
        """
        if len(seen) < 3 or len(set(seen)) < 2:
            raise StudyError(
                f"{len(seen)} runs with {len(set(seen))} different numbers of patients × rounds",
                why="a line through fewer than three runs, or through one number, says nothing of others",
                fix="measure more: grandrounds bench utility --patients 60,120,240",
            )
        x, y = np.log(np.asarray(seen, dtype=float)), np.log(np.asarray(perplexities, dtype=float))
        centre, spread = float(x.mean()), float(((x - x.mean()) ** 2).sum())
        slope = float(((x - centre) * y).sum() / spread)
        level = float(y.mean() - slope * centre)
        squares = float(((y - level - slope * x) ** 2).sum())
        return cls(
            level=level,
            slope=slope,
            deviation=math.sqrt(squares / (len(x) - 2)),
            centre=centre,
            spread=spread,
            count=len(x),
            range=(min(seen), max(seen)),
        )

    def needed(self, perplexity: float) -> tuple[float, float, float]:
        """The patients × rounds at which the line is at ``perplexity``, between the ends of their 95 % interval.

        The interval has every number at which the line could be there, by its own t-interval (Fieller 1954). Raises
        StudyError where the runs do not show that more patients help: then nothing bounds it.
        """
        from scipy.stats import t

        quantile = float(t.ppf((1 + _CONFIDENCE) / 2, self.count - 2)) * self.deviation
        distance = self.level + self.slope * self.centre - math.log(perplexity)
        curvature = self.slope**2 - quantile**2 / self.spread
        if self.slope >= 0 or curvature <= 0:
            raise StudyError(
                f"over {self.count} runs perplexity goes with patients × rounds to the power {self.slope:.2f}, which "
                "may as well be 0 or more",
                why="how many patients a quality takes cannot be read from runs that do not show that more help",
                fix="measure more seeds, or numbers of patients that lie further apart",
            )
        root = math.sqrt(distance**2 * self.slope**2 - curvature * (distance**2 - quantile**2 / self.count))
        ends = [(-distance * self.slope + sign * root) / curvature for sign in (-1, 1)]
        low, line, high = np.exp([self.centre + ends[0], self.centre - distance / self.slope, self.centre + ends[1]])
        return float(low), float(line), float(high)


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a ``perplexity`` takes at ``epsilon``: patients in a study's rounds, and sites of its average size.

    ``patients`` and ``sites`` are the least, the likeliest and the most of a 95 % interval; ``measured`` are the fewest
    and the most patients × rounds of the ``runs`` that it rests on.
    """

    perplexity: float
    epsilon: float
    patients: tuple[int, int, int]
    sites: tuple[int, int, int]
    slope: float
    runs: int
    measured: tuple[float, float]

    @classmethod
    def of(cls, rows: Sequence[Row], study: Study, *, perplexity: float) -> Self:
        """From the rows of a benchmark that have the study's trust and ε; raises StudyError."""
        epsilon = study.privacy.target_epsilon or DEFAULT_TARGET_EPSILON
        of_trust = [row for row in rows if row.way == study.privacy.trust and row.perplexity_after is not None]
        fitting = [row for row in of_trust if row.epsilon == epsilon]
        if not fitting:
            found = ", ".join(f"{row_epsilon:g}" for row_epsilon in sorted({row.epsilon or 0 for row in of_trust}))
            raise StudyError(
                f"the rows have no run under {study.privacy.trust} trust at ε = {epsilon:g}",
                why="what patients are worth depends on both",
                fix=f"plan with --target-epsilon of {found}" if found else "measure it: grandrounds bench utility",
            )
        if len({_without_rounds(row) for row in fitting}) > 1:
            raise StudyError(
                "the rows are of several settings",
                why="one line through them would be that of none",
                fix="give each benchmark its own --output",
            )
        law = PowerLaw.fit(
            [row.patients * row.rounds for row in fitting], [known(row.perplexity_after) for row in fitting]
        )
        low, line, high = (number / study.training.rounds for number in law.needed(perplexity))
        each = study.total_nominal_units / len(study.sites)
        return cls(
            perplexity=perplexity,
            epsilon=epsilon,
            patients=_up(low, line, high),
            sites=_up(low / each, line / each, high / each),
            slope=law.slope,
            runs=law.count,
            measured=law.range,
        )

    def lines(self) -> Sequence[str]:
        """For people."""
        (low, line, high), (fewest, sites, most) = self.patients, self.sites
        begin, end = self.measured
        return (
            f"Perplexity {self.perplexity:g} at ε = {self.epsilon:g}: about {line:,} patients ({low:,} to {high:,}), "
            f"which are {sites:,} sites of this size ({fewest:,} to {most:,}).",
            f"By {self.runs} runs with {begin:,.0f} to {end:,.0f} patients × rounds, where perplexity goes with their "
            f"power {self.slope:.2f}. The intervals are of 95 %, for patients and notes like those of the benchmark.",
        )


def _without_rounds(row: Row) -> str:
    training = {name: value for name, value in row.stated.get("training", {}).items() if name != "rounds"}
    return json.dumps({**row.stated, "training": training}, sort_keys=True)


def _up(*numbers: float) -> tuple[int, int, int]:
    low, line, high = (math.ceil(min(number, _MOST)) for number in numbers)
    return low, line, high
