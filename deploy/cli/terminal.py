"""What the commands of both operators share."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable

import click
import typer

from ...common.printable import printable


def say(lines: Iterable[str]) -> None:
    """Print lines at once, also into a log; nothing in them steers a terminal."""
    for line in lines:
        print(printable(line), flush=True)


def until_stopped() -> Callable[[], bool]:
    """Whether SIGTERM or SIGINT has come since."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop.is_set


def confirmed(question: str) -> bool:
    """Whether somebody said yes; where nobody is there to be asked, nobody did."""
    try:
        return typer.confirm(question, default=False)
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):  # somebody was, and stopped the command
            raise
        typer.echo()
        return False


def at_terminal() -> bool:
    """Whether somebody is there who can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()
