"""How perplexity falls with patients: a power law through what was measured, its test, and its reading backwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ....common.errors import StudyError

_CONFIDENCE: Final = 0.95
_SAME: Final = 1e-12  # squares of logarithms; perplexities of three digits that are not the same are far above it


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Perplexity = e^level × patients^slope, by least squares of logarithms over ``count`` runs.

    ``deviation`` is that of a run's log-perplexity about the line; ``centre`` and ``spread`` are the mean of
    ln(patients) and the sum of its squared differences from it; ``range`` is what was measured.

    ``lack_of_fit`` is the p-value of the F-test of that name: runs about the means of their numbers of patients against
    these means about the line (Draper and Smith 1998, Applied Regression Analysis, 3rd edition, section 2.1). Where it
    is small, patients matter otherwise than by a power law. None where nothing can be tested: of fewer than three
    numbers of patients, where none repeats, and where those that repeat came out the same.
    """

    level: float
    slope: float
    deviation: float
    centre: float
    spread: float
    count: int
    range: tuple[float, float]
    lack_of_fit: float | None

    @classmethod
    def fit(cls, patients: Sequence[float], perplexities: Sequence[float]) -> Self:
        """Through runs on so many ``patients`` each. Raises StudyError where these are too few.

        >>> law = PowerLaw.fit([100, 200, 400, 800], [16.0, 8.0, 4.0, 2.0])
        >>> round(law.slope, 6), round(law.needed(5.0)[1])
        (-1.0, 320)
        """
        if len(patients) < 3 or len(set(patients)) < 2:
            numbers = ", ".join(f"{number:,.0f}" for number in sorted(set(patients))) or "no"
            raise StudyError(
                f"{len(patients)} runs with a gain, on {numbers} patients",
                why="a line through fewer than three runs, or through one number, says nothing of others",
                fix="measure more: grandrounds bench utility --patients 60,120,240",
            )
        x, y = np.log(np.asarray(patients, dtype=float)), np.log(np.asarray(perplexities, dtype=float))
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
            range=(min(patients), max(patients)),
            lack_of_fit=_lack_of_fit(x, y, squares),
        )

    def expected(self, patients: float) -> tuple[float, float, float]:
        """The perplexity that one more run on ``patients`` comes to: the line, between the ends of a 95 % interval.

        As for any prediction of a single run, its own deviation is added to the line's (Student's t).

        >>> low, line, high = PowerLaw.fit([100, 200, 400, 800], [16.5, 8.0, 4.0, 2.0]).expected(400)
        >>> low < line < high, round(line)
        (True, 4)
        """
        distance = math.log(patients) - self.centre
        half = self._quantile * math.sqrt(1 + 1 / self.count + distance**2 / self.spread)
        line = self.level + self.slope * math.log(patients)
        return math.exp(line - half), math.exp(line), math.exp(line + half)

    @property
    def _quantile(self) -> float:
        """Student's, of a 95 % interval, times a run's deviation."""
        from scipy.stats import t

        return float(t.ppf((1 + _CONFIDENCE) / 2, self.count - 2)) * self.deviation

    def needed(self, perplexity: float) -> tuple[float, float, float]:
        """The patients at which the line is at ``perplexity``, between the ends of a 95 % interval for one run.

        The interval has every number of patients whose interval by ``expected`` has ``perplexity``: Fieller's (1954)
        for a single new observation, not for the line. Raises StudyError where the runs do not show that more patients
        help: then nothing bounds it.
        """
        quantile = self._quantile
        distance = self.level + self.slope * self.centre - math.log(perplexity)
        curvature = self.slope**2 - quantile**2 / self.spread
        if self.slope >= 0 or curvature <= 0:
            raise StudyError(
                f"over {self.count} runs perplexity goes with patients to the power {self.slope:.2f}, which may as "
                "well be 0 or more",
                why="how many patients a quality takes cannot be read from runs that do not show that more help",
                fix="measure more seeds, or numbers of patients that lie further apart; or ask for no --quality",
            )
        own = quantile**2 * (1 + 1 / self.count)
        root = math.sqrt(distance**2 * self.slope**2 - curvature * (distance**2 - own))
        ends = [(-distance * self.slope + sign * root) / curvature for sign in (-1, 1)]
        low, line, high = np.exp([self.centre + ends[0], self.centre - distance / self.slope, self.centre + ends[1]])
        return float(low), float(line), float(high)


def _lack_of_fit(x: NDArray[np.float64], y: NDArray[np.float64], squares: float) -> float | None:
    from scipy.stats import f

    groups = [y[x == value] for value in np.unique(x)]
    pure = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    between, within = len(groups) - 2, len(x) - len(groups)
    if between < 1 or within < 1 or pure < _SAME:
        return None
    return float(f.sf((squares - pure) / between / (pure / within), between, within))
