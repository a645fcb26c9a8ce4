"""What a study may come to, by the rows of a benchmark that are of runs like it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, get_args

from ....common.errors import StudyError
from ....common.privacy.trust import Trust
from ....common.schema import known
from ....common.study.study import DEFAULT_TARGET_EPSILON, Study
from ...builtin.patients import Split
from .paired import changed, said
from .row import Row, stated_of
from .scaling import PowerLaw
from .ways import noise_over_claimed

_MOST: Final = 1e12
_SHOWN: Final = 8
_LACKS_FIT: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What runs have to share with a study, beside their settings, for anything of it to be read from them."""

    trust: str
    epsilon: float | None
    rounds: int
    sites: int
    split: str
    noise_over_claimed: float | None

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.trust}, ε = {self.epsilon:g}, {self.rounds} rounds, {self.sites} sites, split {self.split}, noise "
            f"{self.noise_over_claimed:g} × claimed"
        )

    @classmethod
    def of_row(cls, row: Row) -> Self:
        """A run's."""
        shared = ("epsilon", "rounds", "sites", "split", "noise_over_claimed")
        return cls(trust=row.way, **{name: getattr(row, name) for name in shared})

    @classmethod
    def of_study(cls, study: Study, split: Split) -> Self:
        """A study's, whose patients are spread by the ``split``. Raises StudyError where no ε is its target."""
        privacy = study.privacy
        if privacy.noise_multiplier is not None or not privacy.noise:
            raise StudyError(
                "a forecast for a study with a stated noise_multiplier, or without noise",
                why="what was measured is told apart by target_epsilon, and one noise is another ε in another study",
                fix="state target_epsilon in place of noise_multiplier, or leave --results out",
            )
        return cls(
            trust=privacy.trust,
            epsilon=privacy.target_epsilon or DEFAULT_TARGET_EPSILON,
            rounds=study.training.rounds,
            sites=len(study.sites),
            split=split,
            noise_over_claimed=noise_over_claimed(study, privacy.trust),
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study may come to, by ``runs`` of its ``kind`` that share their settings.

    Attributes:
        patients: the study's, and ``expected`` the perplexity there: the least, the likeliest and the most of a 95 %
            interval for one run.
        needed: the patients that the perplexity ``quality`` takes, likewise; None where none was asked for.
        slope: the power of patients that perplexity goes with, and ``lack_of_fit`` the p-value of its test.
        settings: the first numbers of the hash of what the runs were trained with, and ``stated`` what in that is no
            default.
        differs: what that states otherwise than the study does; nothing if it is the study's own.
        measured: the fewest and the most patients of theirs.
        left_out: runs of that kind and settings which ended no better than they began, in words: they are on no law by
            which patients help. ``failed`` has the most patients of one.
        floor: the least and the most perplexity that the same schedule came to without noise, if it was measured, and
            on how many patients at most: a power law goes below all that a schedule can learn.
    """

    kind: Kind
    patients: int
    expected: tuple[float, float, float]
    quality: float | None
    needed: tuple[int, int, int] | None
    slope: float
    lack_of_fit: float | None
    runs: int
    settings: str
    stated: dict[str, Any]
    differs: str
    measured: tuple[float, float]
    left_out: tuple[str, ...]
    failed: int
    floor: tuple[float, float, int] | None

    @classmethod
    def of(cls, rows: Sequence[Row], study: Study, *, split: Split, perplexity: float | None = None) -> Self:
        """From those ``rows`` that are of the study's kind, and of its settings or else all of one.

        Raises StudyError, which names what rows there are, where there are none or of several settings.
        """
        kind = Kind.of_study(study, split)
        alike = _of_one_settings([row for row in rows if Kind.of_row(row) == kind], study)
        if not alike:
            raise _unmeasured(kind, rows)
        left_out = [row for row in alike if (row.perplexity_after or math.inf) >= row.perplexity_before]
        gained = [(row.patients, known(row.perplexity_after)) for row in alike if row not in left_out]
        law = PowerLaw.fit([number for number, _ in gained], [after for _, after in gained])
        patients, stated = study.total_nominal_units, alike[0].stated
        return cls(
            kind=kind,
            patients=patients,
            expected=law.expected(patients),
            quality=perplexity,
            needed=None if perplexity is None else _up(*law.needed(perplexity)),
            slope=law.slope,
            lack_of_fit=law.lack_of_fit,
            runs=law.count,
            settings=alike[0].settings[:8],
            stated=stated,
            differs=changed(stated_of(study), stated),
            measured=law.range,
            left_out=tuple(map(_left_out, left_out)),
            failed=max((row.patients for row in left_out), default=0),
            floor=_floor(kind, alike[0], rows),
        )

    def beside(self, study: Study) -> Self:
        """The same, beside what the ``study`` has been planned to be since."""
        return replace(self, differs=changed(stated_of(study), self.stated))

    def lines(self) -> Sequence[str]:
        """For people."""
        low, line, high = self.expected
        begin, end = self.measured
        beyond = "" if begin <= self.patients <= end else "; the study is beyond what was measured"
        return (
            f"Perplexity to expect at ε = {self.kind.epsilon:g}: about {line:.2f} ({low:.2f} to {high:.2f}), with "
            f"{self.patients:,} patients.",
            *self._needed(),
            f"By {self.runs} runs on {begin:,.0f} to {end:,.0f} patients ({self.kind}), where perplexity goes with "
            f"patients to the power {self.slope:.2f}{beyond}. Each interval is the 95 % one of a single run, for "
            "patients and notes like those of the benchmark, and for its settings "
            f"{self.settings} ({'; '.join(said(self.stated))}).",
            *self._warnings(),
        )

    def _needed(self) -> Sequence[str]:
        if self.needed is None:
            return ()
        low, line, high = self.needed
        return (
            f"Perplexity {self.quality:g} at ε = {self.kind.epsilon:g}: about {line:,} patients ({low:,} to {high:,}), "
            f"which are {math.ceil(line / self.kind.sites):,} at each of {self.kind.sites} sites.",
        )

    def _warnings(self) -> list[str]:
        found = []
        if self.differs:
            found.append(f"Warning: these settings are not the study's own. They differ in {self.differs}.")
        if self.lack_of_fit is None:
            found.append(
                "Whether a power law holds is not tested: that takes three numbers of patients, one of several runs."
            )
        elif self.lack_of_fit < _LACKS_FIT:
            found.append(
                f"Warning: no power law holds here (F-test for lack of fit, p = {self.lack_of_fit:.2g}), so that "
                "neither figures nor intervals are to be relied on."
            )
        else:
            found.append(f"The runs show no lack of fit (F-test, p = {self.lack_of_fit:.2g}).")
        if self.floor is not None:
            low, high, patients = self.floor
            came = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            found.append(f"Without noise the same schedule came to {came}, on up to {patients:,} patients.")
            if min(self.expected[1], self.quality or math.inf) < low:
                found.append(
                    "Warning: that is above what the law says, which goes below all that the schedule can learn. More "
                    "patients than were measured bring less noise, and no more than that."
                )
        if self.left_out:
            found.append(f"Left out, since they ended no better than they began: {'; '.join(self.left_out)}.")
        if self.patients <= self.failed or (self.needed is not None and self.needed[0] <= self.failed):
            found.append(
                f"Warning: a run on {self.failed:,} patients ended no better than it began. With as few, or fewer, a "
                "study may, too, whatever the law says."
            )
        return found


def _of_one_settings(rows: Sequence[Row], study: Study) -> list[Row]:
    """Those of the study's own settings; else all, if they are of one. Raises StudyError where they are of several."""
    candidates = {row.settings: row.stated for row in rows}
    own = stated_of(study)
    chosen = [name for name, stated in candidates.items() if not changed(own, stated)] or list(candidates)
    if len(chosen) > 1:
        listed = ", ".join(f"{name[:8]} ({changed(own, candidates[name])})" for name in chosen)
        raise StudyError(
            f"rows like the study are of {len(chosen)} settings, none of them its own: {listed}",
            why="what patients are worth depends on how is trained",
            fix="plan a study of one of these settings (--config), or leave the rows of one alone in the file",
        )
    return [row for row in rows if row.settings in chosen]


def _floor(kind: Kind, alike: Row, rows: Sequence[Row]) -> tuple[float, float, int] | None:
    """What runs without noise came to, of the settings, rounds and split of those that are ``alike``."""
    found = [
        (after, row.patients)
        for row in rows
        if row.way == "noise-off" and (row.settings, row.rounds, row.split) == (alike.settings, kind.rounds, kind.split)
        if (after := row.perplexity_after) is not None
    ]
    if not found:
        return None
    perplexities, patients = zip(*found, strict=True)
    return min(perplexities), max(perplexities), max(patients)


def _left_out(row: Row) -> str:
    after = "no finite one" if row.perplexity_after is None else f"{row.perplexity_after:g}"
    return f"{row.patients:,} patients, seed {row.seed} (perplexity {row.perplexity_before:g} → {after})"


def _unmeasured(kind: Kind, rows: Sequence[Row]) -> StudyError:
    found = Counter(Kind.of_row(row) for row in rows if row.way in get_args(Trust))
    listed = "; ".join(f"{count} ({other})" for other, count in found.most_common(_SHOWN))
    more = f"; and {len(found) - _SHOWN} kinds more" if len(found) > _SHOWN else ""
    return StudyError(
        f"the rows have no run like the study ({kind}). There are: {listed or 'none of a federation'}{more}",
        why="what patients are worth depends on each of these",
        fix="plan a study like what was measured, or measure one like the study: grandrounds bench utility "
        f"--ways {kind.trust} --epsilon {kind.epsilon:g} --sites {kind.sites} --split {kind.split} --config STUDY.toml",
    )


def _up(*numbers: float) -> tuple[int, int, int]:
    low, line, high = (math.ceil(min(number, _MOST)) for number in numbers)
    return low, line, high
