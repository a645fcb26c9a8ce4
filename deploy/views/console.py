"""The terminal as every command prints to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def plain_console(**options: Any) -> Console:
    """A console that prints words as they are: brackets in a name are no markup, and colons make no pictures."""
    return Console(markup=False, emoji=False, **options)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being done: in a line that moves on a terminal, else in a line each.

    What a command prints at its end is not among it.
    """
    console = plain_console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda doing: console.print(f"{doing} …", soft_wrap=True)
        return
    with console.status("") as status:
        yield lambda doing: status.update(f"{doing} …")


@contextmanager
def records_done() -> Iterator[Callable[[int, float], None]]:
    """Shows on standard error how many records are done, how fast, which share of the source that is, and what is left.

    Told of both, once some are done. Where there is no terminal, a line for each tenth.
    """
    console = plain_console(stderr=True, highlight=False)
    tenths = 0
    bar = _bar(console)
    task = bar.add_task("preparing records", total=1.0, said="")

    def show(records: int, share: float) -> None:
        nonlocal tenths
        bar.update(task, completed=share)
        # Of the last half minute: what an earlier command did is there at once, and says nothing of how fast this is.
        each_second = (bar.tasks[0].speed or 0.0) * records / (share or 1.0)
        said = f"{records:,} records" + (f", {each_second:,.0f} a second" if each_second else "")
        bar.update(task, said=said)
        if not console.is_terminal and int(10 * share) > tenths:
            tenths = int(10 * share)
            console.print(f"prepared {said}, {10 * tenths} % of the source", soft_wrap=True)

    with bar:
        yield show


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows on standard error how many of ``total`` things are done, and what is left; told of each number in turn.

    Where there is no terminal, a line for each tenth.
    """
    console = plain_console(stderr=True, highlight=False)
    bar, tenths = _bar(console), 0
    task = bar.add_task(what, total=total, said="")

    def show(done: int) -> None:
        nonlocal tenths
        bar.update(task, completed=done, said=f"{done:,} of {total:,}")
        if not console.is_terminal and 10 * done // total > tenths:
            tenths = 10 * done // total
            console.print(f"{done:,} of {total:,} {what}", soft_wrap=True)

    with bar:
        yield show


def _bar(console: Console) -> Progress:
    """A line that moves on a terminal, and nothing elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
