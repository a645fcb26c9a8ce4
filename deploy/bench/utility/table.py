"""The table of the benchmark: means and standard errors over seeds, as Markdown for people and as CSV."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final

from .paired import against_pooled, lever_cells, levers, said
from .row import Row
from .ways import WAYS

_HEAD: Final = [
    "sites",
    "patients",
    "split",
    "way",
    "ε",
    "noise over claimed",
    "seeds",
    "perplexity before",
    "perplexity after",
    "share of the gain kept",
    "F1 before",
    "F1 after",
    "ledger",
]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of ``count`` seeds' figures, with its standard error: None of one figure, and no ``mean`` of none."""

    mean: float | None
    standard_error: float | None
    count: int

    @classmethod
    def of(cls, figures: Sequence[float | None]) -> "Mean":
        """None where a figure is missing: a mean over the others would be one of the runs that went well.

        >>> Mean.of([1.0, 3.0])
        Mean(mean=2.0, standard_error=1.0, count=2)
        >>> Mean.of([1.0, None]).mean is None
        True
        """
        found = [figure for figure in figures if figure is not None]
        if not found or len(found) < len(figures):
            return cls(mean=None, standard_error=None, count=len(found))
        error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
        return cls(mean=fmean(found), standard_error=error, count=len(found))

    def shown(self, digits: str, times: float = 1.0) -> str:
        """As people read it."""
        if self.mean is None:
            return "–"
        error = "" if self.standard_error is None else f" ± {times * self.standard_error:{digits}}"
        return f"{times * self.mean:{digits}}{error}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """What came of one way of training in one case, over seeds; ``share`` where runs without noise are there too."""

    rows: Sequence[Row]
    before: Mean
    after: Mean
    share: Mean
    f1_before: Mean
    f1_after: Mean

    @property
    def ledger(self) -> str:
        """What `verify` made of the runs."""
        found = sorted({row.verified or "none" for row in self.rows})
        return ", ".join(found).lower().replace("_", " ")


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The lines of a table of rows that share their settings, in the order of the ways."""
    without_noise = {row.case: row.perplexity_after for row in rows if row.way == "noise-off"}
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        order = (row.sites, row.patients, row.split, WAYS.index(row.way), row.epsilon or 0, row.noise_over_claimed or 0)
        groups[order].append(row)
    return [
        Line(
            rows=group,
            before=Mean.of([row.perplexity_before for row in group]),
            after=Mean.of([row.perplexity_after for row in group]),
            share=Mean.of([share_kept(row, without_noise.get(row.case)) for row in group]),
            f1_before=Mean.of([row.f1_before for row in group]),
            f1_after=Mean.of([row.f1_after for row in group]),
        )
        for _, group in sorted(groups.items())
    ]


def share_kept(row: Row, without_noise: float | None) -> float | None:
    """(ln P₀ − ln P) / (ln P₀ − ln P∞), P∞ the perplexity of the same schedule ``without_noise``.

    None where that is not known, or nothing was gained of which a share could be kept.
    """
    before, after = row.perplexity_before, row.perplexity_after
    if after is None or without_noise is None or without_noise >= before:
        return None
    return math.log(before / after) / math.log(before / without_noise)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each of the settings, with what in them is no default, and which programs made the rows.

    Settings that were only tried beside the first ones, seed by seed, are lines of one table, the last, with all
    programs that made rows of theirs.
    """
    groups = _by(rows, lambda row: row.settings)
    tried = list(levers(list(groups.values())))
    beside = {lever.settings for lever in tried}
    parts = []
    for settings, group in groups.items():
        if settings in beside:
            continue
        parts += [
            f"Settings {settings[:8]}: {'; '.join(said(group[0].stated))}. {_programs(group)}.",
            table([_HEAD, *map(_cells, lines_of(group))]),
            *against_pooled(group),
        ]
    if tried:
        made = _programs([row for row in rows if row.settings in beside])
        head = f"Levers: what else was tried, beside settings {rows[0].settings[:8]}. {made}."
        parts += [head, table(lever_cells(tried))]
    return "\n\n".join(parts) + "\n"


def table(cells: Sequence[Sequence[str]]) -> str:
    """As Markdown; the first line is the head."""
    head, *body = cells
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def as_csv(rows: Sequence[Row]) -> str:
    """The lines of all tables, figures whole, each with its settings' hash; means beside their standard errors."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    means = ("before", "after", "share", "f1_before", "f1_after")
    named = [name for mean in means for name in (mean, f"{mean}_standard_error")]
    fields = ("settings", "sites", "patients", "split", "way", "epsilon", "noise_over_claimed")
    writer.writerow([*fields, "seeds", *named, "ledger"])
    for group in _by(rows, lambda row: row.settings).values():
        for line in lines_of(group):
            values = [value for mean in means for value in _both(getattr(line, mean))]
            first = [getattr(line.rows[0], name) for name in fields]
            writer.writerow([*first, len(line.rows), *values, line.ledger])
    return text.getvalue()


def _programs(rows: Sequence[Row]) -> str:
    return f"Program {', '.join(sorted({f'{row.version} ({row.program[:8]})' for row in rows}))}"


def _cells(line: Line) -> list[str]:
    row = line.rows[0]
    return [
        str(row.sites),
        str(row.patients),
        row.split,
        row.way,
        "none" if row.epsilon is None else f"{row.epsilon:g}",
        "none" if row.noise_over_claimed is None else f"{row.noise_over_claimed:.2f}",
        str(len(line.rows)),
        line.before.shown(".1f"),
        line.after.shown(".2f"),
        line.share.shown(".0f", 100) + " %" * (line.share.mean is not None),
        line.f1_before.shown(".2f"),
        line.f1_after.shown(".2f"),
        line.ledger,
    ]


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> Mapping[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _both(mean: Mean) -> tuple[float | None, float | None]:
    return mean.mean, mean.standard_error
