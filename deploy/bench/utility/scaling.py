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
from .paired import said
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

    def expected(self, seen: float) -> tuple[float, float, float]:
        """The perplexity that one more run at ``seen`` comes to: the line, between the ends of a 95 % interval for it.

        As for any prediction of a single run, its own deviation is added to the line's (Student's t).

        >>> low, line, high = PowerLaw.fit([100, 200, 400, 800], [16.5, 8.0, 4.0, 2.0]).expected(400)
        >>> low < line < high, round(line)
        (True, 4)
        """
        distance = math.log(seen) - self.centre
        half = self._quantile * math.sqrt(1 + 1 / self.count + distance**2 / self.spread)
        line = self.level + self.slope * math.log(seen)
        return math.exp(line - half), math.exp(line), math.exp(line + half)

    @property
    def _quantile(self) -> float:
        """Student's, of a 95 % interval, times a run's deviation."""
        from scipy.stats import t

        return float(t.ppf((1 + _CONFIDENCE) / 2, self.count - 2)) * self.deviation

    def needed(self, perplexity: float) -> tuple[float, float, float]:
        """The patients × rounds at which the line is at ``perplexity``, between the ends of their 95 % interval.

        The interval has every number at which the line could be there, by its own t-interval (Fieller 1954). Raises
        StudyError where the runs do not show that more patients help: then nothing bounds it.
        """
        quantile = self._quantile
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
class Forecast:
    """What a study may come to at its ε, by runs of the same trust and ε, which had settings of their own.

    Attributes:
        seen: its patients × rounds, and ``expected`` the perplexity there: the least, the likeliest and the most of a
            95 % interval for one run.
        settings: the first numbers of the hash of what the ``runs`` were trained with, and ``stated`` what in that is
            no default.
        measured: the fewest and the most patients × rounds of theirs.
        needed: what a quality takes, where one was asked for.
    """

    epsilon: float
    seen: int
    expected: tuple[float, float, float]
    slope: float
    runs: int
    settings: str
    stated: str
    measured: tuple[float, float]
    needed: "Needed | None"

    @classmethod
    def of(cls, rows: Sequence[Row], study: Study, *, perplexity: float | None = None) -> Self:
        """From the rows of a benchmark that have the study's trust and ε; of several settings, from the first.

        Raises StudyError.
        """
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
        first = fitting[0]
        fitting = [row for row in fitting if _without_rounds(row) == _without_rounds(first)]
        law = PowerLaw.fit(
            [row.patients * row.rounds for row in fitting], [known(row.perplexity_after) for row in fitting]
        )
        seen = study.total_nominal_units * study.training.rounds
        return cls(
            epsilon=epsilon,
            seen=seen,
            expected=law.expected(seen),
            slope=law.slope,
            runs=law.count,
            settings=first.settings[:8],
            stated="; ".join(said(first.stated)),
            measured=law.range,
            needed=None if perplexity is None else Needed.of(law, study, perplexity=perplexity),
        )

    def lines(self) -> Sequence[str]:
        """For people."""
        low, line, high = self.expected
        begin, end = self.measured
        beyond = "" if begin <= self.seen <= end else "; the study is beyond what was measured"
        return (
            f"Perplexity to expect at ε = {self.epsilon:g}: about {line:.2f} ({low:.2f} to {high:.2f}), with "
            f"{self.seen:,} patients × rounds.",
            *(() if self.needed is None else self.needed.lines(self.epsilon)),
            f"By {self.runs} runs with {begin:,.0f} to {end:,.0f} patients × rounds, where perplexity goes with their "
            f"power {self.slope:.2f}{beyond}. The intervals are of 95 %, for patients and notes like those of the "
            f"benchmark, and for its settings {self.settings} ({self.stated}).",
        )


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a ``perplexity`` takes: patients in a study's rounds, and sites of its average size.

    Each is the least, the likeliest and the most of a 95 % interval.
    """

    perplexity: float
    patients: tuple[int, int, int]
    sites: tuple[int, int, int]

    @classmethod
    def of(cls, law: PowerLaw, study: Study, *, perplexity: float) -> Self:
        """Read backwards from a line; raises StudyError."""
        low, line, high = (number / study.training.rounds for number in law.needed(perplexity))
        each = study.total_nominal_units / len(study.sites)
        return cls(
            perplexity=perplexity,
            patients=_up(low, line, high),
            sites=_up(low / each, line / each, high / each),
        )

    def lines(self, epsilon: float) -> Sequence[str]:
        """For people."""
        (low, line, high), (fewest, sites, most) = self.patients, self.sites
        return (
            f"Perplexity {self.perplexity:g} at ε = {epsilon:g}: about {line:,} patients ({low:,} to {high:,}), "
            f"which are {sites:,} sites of this size ({fewest:,} to {most:,}).",
        )


def _without_rounds(row: Row) -> str:
    training = {name: value for name, value in row.stated.get("training", {}).items() if name != "rounds"}
    return json.dumps({**row.stated, "training": training}, sort_keys=True)


def _up(*numbers: float) -> tuple[int, int, int]:
    low, line, high = (math.ceil(min(number, _MOST)) for number in numbers)
    return low, line, high
