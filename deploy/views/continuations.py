"""A prompt's two continuations, side by side."""

from rich.table import Table
from rich.text import Text

from ...common.printable import printable
from ..adapter.trial import Continuations
from .console import plain_console


def print_continuations(made: Continuations) -> None:
    """Print both, in lines as the model ended them; nothing in them steers the terminal."""
    table = Table("without the adapter", "with the adapter", expand=True, header_style="bold")
    table.add_row(*(Text("\n".join(map(printable, text.split("\n")))) for text in (made.without, made.with_adapter)))
    plain_console(highlight=False).print(table)
    if made.without == made.with_adapter:
        print("both are the same: on this prompt the adapter changes no choice of a token")
