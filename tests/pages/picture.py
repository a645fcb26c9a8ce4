"""A study that has ended as one picture: perplexity and epsilon by round, and who was there.

``PYTHONPATH=tests python -m pages.picture DIR > FILE.svg`` draws the study in DIR, once its claims were recomputed.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from grandrounds.common.errors import StudyError
from grandrounds.common.study.artefacts import REPORT
from grandrounds.deploy.verify.claims import verify
from grandrounds.server.report.charts import ticks
from grandrounds.server.report.claim import count
from grandrounds.server.report.report import Report
from grandrounds.server.report.rounding import number, probability, up

# In the picture's own coordinates, which are pixels at its full width.
WIDTH: Final = 800
_LEFT, _RIGHT = 132, 704
_PANEL_HEIGHT: Final = 104
_BETWEEN: Final = 46
_TOP: Final = 104
_ROW_HEIGHT, _SMALLEST_NAMED_ROW, _SITES_HEIGHT = 20.0, 12.0, 320.0
_LARGEST_DOT: Final = 5.5
_CROSS: Final = "m-3.5-3.5l7 7m0-7l-7 7"
_MOST_POINTS: Final = 60  # beyond which the line alone is clearer
# What a mark means, and how much room that takes.
_LEGEND: Final = {
    "there": ("in the round’s sum", 156),
    "back": ("lost in an attempt, and back", 214),
    "lost": ("lost", 60),
}


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text, and where it belongs."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A line over the rounds, from one known value to the next, with its axis."""

    heading: str
    note: str
    top: float
    bottom: float
    path: str
    points: tuple[Label, ...]
    y_ticks: tuple[Label, ...]
    limit: Label | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A site's line of marks, as path data: in a round's sum; in it after it was lost in an attempt; not in it."""

    name: Label
    there: str
    back: str
    lost: str


def render_picture(report: Report) -> str:
    """The picture as SVG, which loads nothing from elsewhere and follows the reader's light or dark scheme.

    Perplexities may be known of some rounds only. Without noise the picture says so, and shows no epsilon.
    """
    closed = report["utility"]["rounds"][: report["rounds"]]
    x = _scale(0, max(report["rounds"], 1), _LEFT, _RIGHT)
    panels = [
        _panel(values, x, top=_TOP + index * (_PANEL_HEIGHT + _BETWEEN), heading=heading, note=note, limit=limit)
        for index, (values, heading, note, limit) in enumerate(_lines(report, closed))
    ]
    top = _TOP + len(panels) * (_PANEL_HEIGHT + _BETWEEN)
    height = min(_ROW_HEIGHT, _SITES_HEIGHT / report["sites"])
    rows = _rows(report, closed, x, top=top, height=height)
    bottom = top + len(rows) * height
    radius = min(_LARGEST_DOT, 0.4 * (x(1) - x(0)), 0.4 * height)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["px"] = px
    template = Path(__file__).with_suffix(".svg").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=_title(report),
        private=report["epsilon"] is not None,
        promise=_promise(report),
        description=_description(report),
        panels=panels,
        rows=rows,
        named=height >= _SMALLEST_NAMED_ROW,
        radius=radius,
        sites_top=top,
        bottom=bottom,
        legend=_legend(rows, y=top - 16),
        cross=_CROSS,
        most_points=_MOST_POINTS,
        eventful=[x(round_) for round_ in sorted({dropout["round"] for dropout in report["dropouts"]})],
        x_ticks=[
            Label(x=x(tick), y=bottom, text=f"{tick:g}")
            for tick in ticks(report["rounds"])
            if tick.is_integer() and tick <= report["rounds"]
        ],
        width=WIDTH,
        height=bottom + 40,
        left=_LEFT,
        right=_RIGHT,
    )


def px(value: float) -> str:
    """A coordinate, to a tenth of a pixel.

    >>> px(12.0), px(3.14159)
    ('12', '3.1')
    """
    return f"{value:.1f}".removesuffix(".0")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value from ``low`` to ``high`` is drawn, between ``start`` and ``end``."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _lines(
    report: Report, closed: list[Report]
) -> Iterator[tuple[Mapping[int, float], str, str, tuple[float, str] | None]]:
    """What is drawn over the rounds: values, heading, what is said of them, and a limit with its meaning."""
    perplexities = {0: report["perplexity_before"], **{row["round"]: row["perplexity"] for row in closed}}
    known = {round_: value for round_, value in perplexities.items() if value is not None}
    if known:
        yield known, "Perplexity", f"on held-out {report['utility']['evaluation_kind']} text; lower is better", None
    if report["epsilon"] is not None:
        spent = {0: 0.0, **{row["round"]: row["epsilon_spent"] for row in closed}}
        attempts = count(report["max_attempts"], "attempt")
        claim = (report["epsilon"], f"the claim, over all {attempts}: {up(report['epsilon'])}")
        yield spent, "Privacy spent, ε", f"for each {report['privacy_unit']}; lower is better", claim


def _panel(
    values: Mapping[int, float],
    x: Callable[[float], float],
    *,
    top: float,
    heading: str,
    note: str,
    limit: tuple[float, str] | None,
) -> Panel:
    y_ticks = [*ticks(max([*values.values(), limit[0] if limit else 0.0]))]
    y = _scale(0, y_ticks[-1], top + _PANEL_HEIGHT, top)
    places = [(x(round_), y(values[round_]), values[round_]) for round_ in sorted(values)]
    shown = number if limit is None else up
    return Panel(
        heading=heading,
        note=note,
        top=top,
        bottom=top + _PANEL_HEIGHT,
        path="M" + "L".join(f"{px(across)} {px(down)}" for across, down, _ in places),
        points=tuple(Label(x=across, y=down, text=shown(value)) for across, down, value in places),
        y_ticks=tuple(Label(x=_LEFT, y=y(tick), text=f"{tick:g}") for tick in y_ticks),
        limit=None if limit is None else Label(x=_LEFT, y=y(limit[0]), text=limit[1]),
    )


def _rows(report: Report, closed: list[Report], x: Callable[[float], float], *, top: float, height: float) -> list[Row]:
    lost_in = {(dropout["round"], dropout["site"]) for dropout in report["dropouts"]}
    rows = []
    for index, site in enumerate(row["site"] for row in report["data"]):
        y = top + (index + 0.5) * height
        there = {row["round"] for row in closed if site in row["survivors"]}
        lost = {row["round"] for row in closed} - there
        back = {round_ for round_ in there if (round_, site) in lost_in}
        rows.append(
            Row(
                name=Label(x=_LEFT, y=y, text=site),
                there=_dots(map(x, sorted(there)), y),
                back=_dots(map(x, sorted(back)), y),
                lost=_dots(map(x, sorted(lost)), y, shape=_CROSS),
            )
        )
    return rows


def _legend(rows: list[Row], *, y: float) -> list[tuple[str, Label]]:
    """The kinds of marks that there are, with their meaning and place."""
    legend, x = [], _LEFT + 124.0
    for kind, (meaning, width) in _LEGEND.items():
        if any(getattr(row, kind) for row in rows):
            legend.append((kind, Label(x=x, y=y, text=meaning)))
            x += width
    return legend


def _dots(across: Iterable[float], y: float, *, shape: str = "h0") -> str:
    """Path data of one ``shape`` at each place; a line of no length, with round ends, is a dot."""
    return "".join(f"M{px(place)} {px(y)}{shape}" for place in across)


def _title(report: Report) -> str:
    unit = "patients" if report["privacy_unit"] == "patient" else "records"
    patients = sum(row["nominal_size"] for row in report["data"])
    sites = count(report["sites"], "site")
    return f"{sites[0].upper()}{sites[1:]}, about {patients:,} {unit}, {count(report['rounds'], 'round')}"


def _promise(report: Report) -> str:
    if report["epsilon"] is None:
        return "NO PRIVACY: this study ran without noise"
    return f"ε = {up(report['epsilon'])} at δ = {probability(report['delta'])} for each {report['privacy_unit']}"


def _description(report: Report) -> str:
    """The picture in words, for readers who do not see it."""
    before, after = number(report["perplexity_before"]), number(report["perplexity_after"])
    lost = "".join(f" {dropout['site']} dropped out in round {dropout['round']}." for dropout in report["dropouts"])
    return f"Perplexity went from {before} to {after}. {_promise(report)}.{lost}"


def drawn(folder: Path) -> str:
    """The picture of the study in ``folder``. Raises StudyError where one of its claims does not hold or is missing."""
    wrong = [finding.claim for finding in verify(folder).findings if finding.status.value == "does not agree"]
    if wrong:
        raise StudyError(
            f"{folder} does not hold: {'; '.join(wrong)}",
            why="a picture is believed without being recomputed",
            fix=f"see what `grandrounds verify {folder}` says",
        )
    return render_picture(json.loads((folder / REPORT).read_bytes()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: PYTHONPATH=tests python -m pages.picture DIR")
    print(drawn(Path(sys.argv[1])), end="")
