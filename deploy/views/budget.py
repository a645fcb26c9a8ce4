"""How a site's budgets are shown: on the terminal, as figures for machines, and as a page of its own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...client.budget.amounts import TRILLION, Amounts, shown_down, shown_up
from ...client.budget.asset import COUNTED
from ...client.budget.reservations import BudgetStatement
from ..site_ops.known_studies import KnownStudy

_CELLS: Final = 32
# Two fills in turn, so that neighbouring studies can be told apart without colours too.
_FILLS: Final = (("█", "cyan"), ("▓", "blue"))
_FREE: Final = "░"
DISJOINT: Final = "Each budget holds for itself only if no patient is in two of these data assets."
EMPTY: Final = "No data asset is registered yet: joining a study registers the one that the policy names."
NOTHING: Final = "No study has reserved any of it."
# What the page explains, of the report's glossary.
_TERMS: Final = ("Differential privacy", "ε (epsilon)", "δ (delta)", "Privacy budget")
RESERVED: Final = (
    "A study reserves its whole schedule before it reads a record. Ending early gives nothing back, since when to end "
    "is chosen along the way."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study's share of a bar, in percent of it."""

    study: str
    start: float
    end: float
    reserved: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One amount of a budget that is held against a limit, as it is drawn."""

    called: str
    limit: str
    reserved: str
    left: str
    parts: tuple[Part, ...]


def bars(statement: BudgetStatement) -> list[Bar]:
    """A bar for each amount that the asset's filter counts; what is spent is rounded up and what is left down."""
    return [_bar(statement, amount, called) for amount, called in COUNTED[statement.asset.filter].items()]


def budget_figures(statements: Sequence[BudgetStatement]) -> list[dict[str, Any]]:
    """The same for machines; the RDP only of assets that count it, and of synthetic records no limit."""
    return [
        {
            "asset": statement.asset.name,
            "unit": statement.asset.unit,
            "filter": statement.asset.filter,
            "rdp_order": statement.asset.order,
            "budget": _figures(statement, statement.asset.limit) if COUNTED[statement.asset.filter] else None,
            "left": {amount: statement.left(amount) / TRILLION for amount in COUNTED[statement.asset.filter]},
            "studies": [
                {
                    "study": reservation.study,
                    "reserved": _figures(statement, reservation.amounts),
                    "attempts_begun": reservation.attempts_begun,
                    "attempts_charged": reservation.attempts_charged,
                }
                for reservation in statement.reservations
            ],
        }
        for statement in statements
    ]


def print_budget(console: Console, statements: Sequence[BudgetStatement]) -> None:
    """Print each data asset with a bar for what is reserved and a table of the studies."""
    if not statements:
        console.print(EMPTY)
        return
    for statement in statements:
        console.print(Text.assemble((f"\n{statement.asset.name}", "bold"), f"  {statement.asset.described}"))
        if drawn := bars(statement):
            console.print(Padding(_drawn(drawn), (0, 0, 0, 2)))
        console.print(Padding(_studies(statement) if statement.reservations else NOTHING, (0, 0, 0, 2)))
    console.print(f"\n{RESERVED}{'' if len(statements) == 1 else ' ' + DISJOINT}")


def render_budget(
    statements: Sequence[BudgetStatement],
    *,
    site: str,
    written: datetime,
    studies: Mapping[str, KnownStudy],
    beside: Path,
) -> str:
    """One page that loads nothing from elsewhere and runs no script; its links start from the folder ``beside``."""
    # Imported here: they load jinja2 and numpy, which the terminal does not need.
    from ...server.report.glossary import glossary
    from ...server.report.page import rendered
    from ...server.report.rounding import odds_factor

    terms = glossary(private=True)
    return rendered(
        __package__,
        "budget.html",
        site=site,
        written=written,
        budgets=[(statement, bars(statement)) for statement in statements],
        studies=studies,
        links={
            study: quote(Path(os.path.relpath(known.report, beside)).as_posix())
            for study, known in studies.items()
            if known.report is not None
        },
        odds={statement.asset.name: odds_factor(statement.asset.limit.epsilon / TRILLION) for statement in statements},
        glossary={term: terms[term] for term in _TERMS},
        shown=shown_up,
        nothing=NOTHING,
        notes=[EMPTY] if not statements else [RESERVED, *([DISJOINT] if len(statements) > 1 else [])],
    )


def _bar(statement: BudgetStatement, amount: str, called: str) -> Bar:
    limit = statement.asset.most(amount)
    reserved = [getattr(reservation.amounts, amount) for reservation in statement.reservations]
    ends = list(accumulate(reserved, initial=0))
    return Bar(
        called=called,
        limit=shown_down(limit),
        reserved=shown_up(sum(reserved)),
        left=shown_down(statement.left(amount)),
        parts=tuple(
            Part(
                study=reservation.study,
                start=100 * start / limit,
                end=100 * end / limit,
                reserved=shown_up(end - start),
            )
            for reservation, start, end in zip(statement.reservations, ends, ends[1:], strict=False)
        ),
    )


def _figures(statement: BudgetStatement, amounts: Amounts) -> dict[str, float]:
    figures = {amount: trillionths / TRILLION for amount, trillionths in asdict(amounts).items()}
    return figures if statement.asset.order is not None else {name: figures[name] for name in ("epsilon", "delta")}


def _drawn(drawn: Sequence[Bar]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=_CELLS)
    table.add_column()
    for bar in drawn:
        cells = Text()
        for part, (fill, style) in zip(bar.parts, cycle(_FILLS), strict=False):
            # Whatever is reserved is seen, however little it is.
            cells.append(fill * max(1, _cell(part.end) - _cell(part.start)), style=style)
        cells.truncate(_CELLS)
        cells.append(_FREE * (_CELLS - len(cells)), style="dim")
        table.add_row(bar.called, cells, f"{bar.reserved} of {bar.limit} reserved, {bar.left} left")
    return table


def _cell(percent: float) -> int:
    return round(percent * _CELLS / 100)


def _studies(statement: BudgetStatement) -> Table:
    counts_rdp = statement.asset.order is not None
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("study")
    for column in ("ε", "δ", *(("RDP",) if counts_rdp else ()), "attempts begun", "charged"):
        table.add_column(column, justify="right")
    for reservation in statement.reservations:
        amounts = reservation.amounts
        reserved = (amounts.epsilon, amounts.delta, *((amounts.rdp,) if counts_rdp else ()))
        attempts = (reservation.attempts_begun, reservation.attempts_charged)
        table.add_row(reservation.study[:12], *map(shown_up, reserved), *map(str, attempts))
    return table
