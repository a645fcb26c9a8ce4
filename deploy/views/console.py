"""The terminal as every command prints to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


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
