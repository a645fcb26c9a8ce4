"""The report as people read it: one self-contained HTML page, and the model card of the adapter."""

import functools
import html
import re
from datetime import datetime
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ...common.crypto.identity import shown_key
from . import claim
from .charts import charts_of
from .glossary import glossary
from .report import Report
from .rounding import area, bound, down, estimate, number, odds_factor, percent, precise, probability, share

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
# What Markdown, and the hubs that show it, make something of within a line: links, images, code, tables.
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]|~!$:@./#])")
_COMMAND: Final = re.compile(r"`([^`]+)`")


def render_html(report: Report) -> str:
    """The page for a privacy officer; it loads nothing from elsewhere and runs no script."""
    rounds = report["utility"]["rounds"]
    return (
        environment(autoescape=True)
        .get_template("report.html")
        .render(
            report=report,
            charts=charts_of(report),
            glossary=glossary(private=report["epsilon"] is not None),
            dropped_when=DROPPED_WHEN,
            sensitivity=SENSITIVITY,
            claim=claim,
            in_sums=[said["noise_multiplier"] for row in rounds for said in row["noise_in_sums"]],
        )
    )


def render_model_card(report: Report) -> str:
    """The README.md of the adapter's folder, with the front matter that the Hugging Face hub reads."""
    return environment(autoescape=False).get_template("model_card.md").render(report=report, claim=claim)


def markdown(text: str) -> str:
    """One line of anybody's words, as Markdown that shows them and no more.

    >>> print(markdown("**ε = 0.01** ![ok](http://a.b)"))
    \\*\\*ε = 0\\.01\\*\\* \\!\\[ok\\](http\\:\\/\\/a\\.b)
    """
    return html.escape(_MARKDOWN.sub(r"\\\1", text), quote=False)


def commands(text: str) -> Markup:
    """Words of ours as HTML, with what stands between backquotes as code.

    >>> print(commands("`a < b` & c"))
    <code>a &lt; b</code> &amp; c
    """
    return Markup(_COMMAND.sub(r"<code>\1</code>", html.escape(text)))  # noqa: S704 - escaped here


def rendered(package: str, name: str, *, written: datetime, **values: Any) -> str:
    """A page by the template ``name`` of another room, with the filters of this one; ``written`` is in UTC."""
    template = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    page = environment(autoescape=True).from_string(template)
    return page.render(written=f"{written:%Y-%m-%d %H:%M} UTC", **values)


@functools.cache
def environment(*, autoescape: bool) -> Environment:
    """The templates of this room, with a filter for each way to write a number."""
    made = Environment(
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=autoescape,  # noqa: S701 - off for the model card only, which is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for filter_ in (
        area,
        commands,
        down,
        estimate,
        markdown,
        number,
        percent,
        precise,
        odds_factor,
        probability,
        share,
        shown_key,
    ):
        made.filters[filter_.__name__] = filter_
    made.filters["up"] = bound
    return made
