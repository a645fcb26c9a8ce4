"""The report as people read it: one self-contained HTML page, and the model card of the adapter."""

import functools
import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from ...common.crypto.identity import shown_key
from . import claim
from .report import Report

# At which exchange of an attempt a site was lost, in words.
DROPPED_WHEN: Final = {
    "advert": "before it joined the attempt",
    "shares": "while keys were exchanged",
    "masked-input": "before its update was in",
    "consistency": "after its update was in",
    "unmask": "after its update was in",
}
# What a site says of its records, in words.
SENSITIVITY: Final = {
    "synthetic": "synthetic: of nobody",
    "public": "public",
    "deidentified": "de-identified",
    "identifiable": "identifiable",
}
_LARGEST_IN_DIGITS: Final = 6  # powers of ten

# A chart's own coordinates, which the page scales to its width, and the margins around what is drawn.
_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 22, 40

# What Markdown, and the hubs that show it, make something of within a line: links, images, code, tables.
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]|~!$:@./#])")


def render_html(report: Report) -> str:
    """The page for a privacy officer; it loads nothing from elsewhere and runs no script."""
    return (
        _environment(autoescape=True)
        .get_template("report.html")
        .render(report=report, charts=_charts(report), dropped_when=DROPPED_WHEN, sensitivity=SENSITIVITY, claim=claim)
    )


def render_model_card(report: Report) -> str:
    """The README.md of the adapter's folder, with the front matter that the Hugging Face hub reads."""
    return _environment(autoescape=False).get_template("model_card.md").render(report=report, claim=claim)


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


def chart(
    values: Mapping[int, float],
    *,
    title: str,
    description: str,
    dropouts: Mapping[int, str],
    limit: float | None = None,
) -> Chart:
    """A chart of ``values`` by round, with a mark at each round of ``dropouts`` and a line at ``limit``.

    A round may have no value: the line passes over it, and a mark stands on the line.
    """
    last = max(values)
    rounds = sorted(values)
    y_ticks = ticks(max([*values.values(), limit or 0.0]))

    def x(round_: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * round_ / max(last, 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / y_ticks[-1]

    def point(round_: int) -> Point:
        return Point(x=x(round_), y=y(values[round_]), label=f"{values[round_]:.3g}")

    return Chart(
        title=title,
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
        limit=None if limit is None else Point(x=_WIDTH - _RIGHT, y=y(limit), label=claim.up(limit)),
    )


def ticks(largest: float) -> list[float]:
    """From 0 in about five round steps to ``largest`` or just above it.

    >>> ticks(54.2)
    [0.0, 20.0, 40.0, 60.0]
    """
    magnitude = 10.0 ** math.floor(math.log10(largest / 4)) if largest > 0 else 1.0
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * 5 >= largest)
    return [round(index * step, 10) for index in range(math.ceil(largest / step - 1e-9) + 1)]


def _charts(report: Report) -> list[Chart]:
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
                description=f"On held-out {report['utility']['evaluation_kind']} text, over whole records and in some "
                "rounds only; lower is better. From "
                f"{number(report['perplexity_before'])} before training to {number(report['perplexity_after'])}.",
                dropouts=dropouts,
            )
        )
    if report["epsilon"] is not None:
        charts.append(
            chart(
                {0: 0.0, **{row["round"]: row["epsilon_spent"] for row in closed}},
                title="Privacy spent by round (ε)",
                description="Progress within the claim, which covers the whole schedule: ε = "
                f"{bound(report['epsilon'])}.",
                dropouts=dropouts,
                limit=report["epsilon"],
            )
        )
    return charts


def bound(value: float | None, digits: int = 2) -> str:
    """An upper bound, rounded up; None stands for infinity.

    >>> bound(3.9912), bound(None)
    ('4.00', 'no bound')
    """
    return "no bound" if value is None else claim.up(value, digits)


def number(value: float | None) -> str:
    """A measured figure to three digits.

    >>> number(9.1), number(54.26), number(None)
    ('9.1', '54.3', 'no finite figure')
    """
    if value is None:
        return "no finite figure"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as a percentage, rounded up to one decimal.

    >>> percent(0.10871), percent(0.01)
    ('10.9 %', '1 %')
    """
    return f"{math.ceil(round(share * 1000, 6)) / 10:g} %"


def markdown(text: str) -> str:
    """One line of anybody's words, as Markdown that shows them and no more.

    >>> print(markdown("**ε = 0.01** ![ok](http://a.b)"))
    \\*\\*ε = 0\\.01\\*\\* \\!\\[ok\\](http\\:\\/\\/a\\.b)
    """
    return html.escape(_MARKDOWN.sub(r"\\\1", text), quote=False)


def odds_factor(epsilon: float) -> str:
    """e^ε, rounded up.

    >>> odds_factor(0.5), odds_factor(4.0), odds_factor(20.0)
    ('1.7', '55', '10⁹')
    """
    exponent = math.ceil(epsilon / math.log(10))
    if exponent > _LARGEST_IN_DIGITS:
        return _power_of_ten(exponent)
    factor = math.exp(epsilon)
    return claim.up(factor, 1) if factor < 10 else f"{math.ceil(factor):,}"


def probability(value: float) -> str:
    """A small probability as people write it.

    >>> probability(1e-05), probability(0.0005)
    ('10⁻⁵', '0.0005')
    """
    exponent = math.log10(value)
    return _power_of_ten(int(exponent)) if exponent.is_integer() else f"{value:g}"


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@functools.cache
def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=autoescape,  # noqa: S701 - off for the model card only, which is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for filter_ in (markdown, number, percent, odds_factor, probability, shown_key):
        environment.filters[filter_.__name__] = filter_
    environment.filters["up"] = bound
    return environment
