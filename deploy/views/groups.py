"""Quality by groups of people, in a terminal and for machines."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ...server.report.groups import EVERYONE, InGroup
from ...server.report.rounding import estimate, number
from ..adapter.by_group import ByGroup
from .console import plain_console

_MEANING = (
    "A gain is how many nats less a token loses, with a 95 % interval over patients; beyond others is by how much it "
    "is more than that of all others of whom the same is said, with intervals that hold for all groups at once."
)


def group_figures(found: ByGroup) -> dict[str, Any]:
    """The figures of every group."""
    return {
        "beside_base": [group.row for group in found.beside_base],
        "beside_other": [group.row for group in found.beside_other],
    }


def print_groups(found: ByGroup) -> None:
    """A table of the adapter beside its base model, and one beside the other adapter."""
    console = plain_console(highlight=False)
    for beside, groups in (("base model", found.beside_base), ("other adapter", found.beside_other)):
        if groups:
            console.print(_table(beside, groups))
            for group in groups:
                if group.is_worse or group.gains_less:
                    what = f"WORSE than the {beside}" if group.is_worse else "LESS gained than by others"
                    console.print(f"{_called(group)}: {what}", style="bold")
    console.print(_MEANING)


def _table(beside: str, groups: Sequence[InGroup]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("group", overflow="fold")
    for column in ("patients", beside, "adapter", "gain", "beyond others"):
        table.add_column(column, justify="right")
    for group in groups:
        figures = (
            ("too small", "", "", "")
            if group.is_too_small
            else (
                number(group.before),
                number(group.after),
                estimate(group.row["gain"]),
                estimate(group.row["beyond_others"]),
            )
        )
        table.add_row(_called(group), str(group.patients), *figures)
    return table


def _called(group: InGroup) -> str:
    return EVERYONE if group.trait == EVERYONE else f"{group.trait}: {group.group}"
