"""The report's charts: lines over the rounds, laid out in numbers that the page draws."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from . import rounding

# A chart's own coordinates, which the page scales to its width, and the margins around what is drawn: above it stands
# the vertical axis's name, to its right the last value, and below it ticks and the horizontal axis's name.
_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 56, 46, 50
_BESIDE: Final = 8  # between a point and its label


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a chart, in its coordinates, and what a reader is told about it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line over the rounds, ready to be drawn: everything is in the chart's coordinates."""

    title: str
    axis: str
    description: str
    points: tuple[Point, ...]
    dropouts: tuple[Point, ...]
    x_ticks: tuple[Point, ...]
    y_ticks: tuple[Point, ...]
    limit: Point | None
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM

    @property
    def path(self) -> str:
        """The line as SVG path data."""
        return "M" + "L".join(f"{point.x:.1f} {point.y:.1f}" for point in self.points)

    @property
    def first(self) -> Point:
        """Where the first value is written: on the side of its point that the line does not leave by."""
        point, *others = self.points
        falls = not others or others[0].y >= point.y
        return Point(x=point.x + 2, y=point.y - _BESIDE if falls else point.y + 2.5 * _BESIDE, label=point.label)

    @property
    def last(self) -> Point:
        """Where the last value is written: to the right of its point, where no line goes on."""
        point = self.points[-1]
        return Point(x=point.x + _BESIDE, y=point.y + _BESIDE / 2, label=point.label)


def chart(
    values: Mapping[int, float],
    *,
    title: str,
    axis: str,
    description: str,
    dropouts: Mapping[int, str],
    limit: float | None = None,
    shown: Callable[[float], str] = rounding.number,
) -> Chart:
    """A chart of ``values`` by round, with a mark at each round of ``dropouts`` and a line at ``limit``.

    A round may have no value: the line passes over it, and a mark stands on the line. ``shown`` writes a value.
    """
    last = max(values)
    rounds = sorted(values)
    y_ticks = ticks(max([*values.values(), limit or 0.0]))

    def x(round_: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * round_ / max(last, 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / y_ticks[-1]

    def point(round_: int) -> Point:
        return Point(x=x(round_), y=y(values[round_]), label=shown(values[round_]))

    return Chart(
        title=title,
        axis=axis,
        description=description,
        points=tuple(point(round_) for round_ in rounds),
        dropouts=tuple(
            Point(
                x=x(round_),
                y=y(float(np.interp(round_, rounds, [values[known] for known in rounds]))),
                label=f"round {round_}: {text}",
            )
            for round_, text in dropouts.items()
            if rounds[0] <= round_ <= last
        ),
        x_ticks=tuple(
            Point(x=x(tick), y=_HEIGHT - _BOTTOM, label=f"{tick:g}")
            for tick in ticks(last)
            if tick <= last and tick.is_integer()
        ),
        y_ticks=tuple(Point(x=_LEFT, y=y(tick), label=f"{tick:g}") for tick in y_ticks),
        limit=None if limit is None else Point(x=_WIDTH - _RIGHT, y=y(limit), label=shown(limit)),
    )


def ticks(largest: float) -> list[float]:
    """From 0 in about five round steps to ``largest`` or just above it.

    >>> ticks(54.2)
    [0.0, 20.0, 40.0, 60.0]
    """
    magnitude = 10.0 ** math.floor(math.log10(largest / 4)) if largest > 0 else 1.0
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * 5 >= largest)
    return [round(index * step, 10) for index in range(math.ceil(largest / step - 1e-9) + 1)]


def charts_of(report: Mapping[str, Any]) -> list[Chart]:
    """A report's charts: perplexity where any was finite, and ε where there is a claim."""
    closed = report["utility"]["rounds"]
    lost: dict[int, list[str]] = {}
    for dropout in report["dropouts"]:
        lost.setdefault(dropout["round"], []).append(dropout["site"])
    dropouts = {round_: f"{', '.join(dict.fromkeys(sites))} dropped out" for round_, sites in lost.items()}
    perplexities = {0: report["perplexity_before"], **{row["round"]: row["perplexity"] for row in closed}}
    known = {round_: perplexity for round_, perplexity in perplexities.items() if perplexity is not None}
    charts = []
    if known:
        charts.append(
            chart(
                known,
                title="Perplexity by round",
                axis="perplexity",
                description=f"On held-out {report['utility']['evaluation_kind']} text, over whole records and in some "
                "rounds only; lower is better. From "
                f"{rounding.number(report['perplexity_before'])} before training to "
                f"{rounding.number(report['perplexity_after'])}.",
                dropouts=dropouts,
            )
        )
    if report["epsilon"] is not None:
        charts.append(
            chart(
                {0: 0.0, **{row["round"]: row["epsilon_spent"] for row in closed}},
                title="Privacy spent by round (ε)",
                axis="ε so far",
                description="Progress within the claim, which covers the whole schedule: ε = "
                f"{rounding.up(report['epsilon'])}.",
                dropouts=dropouts,
                limit=report["epsilon"],
                shown=rounding.up,
            )
        )
    return charts
