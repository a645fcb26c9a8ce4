"""The terminal as every command prints to it."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console that prints words as they are: brackets in a name are no markup, and colons make no pictures."""
    return Console(markup=False, emoji=False, **options)
