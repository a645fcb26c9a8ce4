"""``grandrounds wheelhouse``: the program with all that it needs, for a machine without a network."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import say


def wheelhouse(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    wheel: Annotated[Path | None, typer.Option(help="The program's wheel; default: built from this checkout.")] = None,
    extra: Annotated[list[str] | None, typer.Option(help="An extra of the package; may be repeated.")] = None,
    python: Annotated[Path | None, typer.Option(help="The interpreter to fetch packages for; default: this.")] = None,
    constraints: Annotated[
        Path | None, typer.Option(help="Versions and hashes, as constraints.txt has them; default: this checkout's.")
    ] = None,
) -> None:
    """Collect the program's wheels with their hashes and a bill of materials, to be installed without a network.

    They fit machines like this one. pip takes them from where it is set up to, and refuses a file whose hash is not in
    constraints.txt.
    """
    from ..views.console import steps
    from ..wheelhouse.build import make_wheelhouse

    with steps() as step:
        step("collecting wheels: pip fetches or compares what the program needs, some GB")
        lines = make_wheelhouse(folder, wheel=wheel, extras=extra or (), python=python, constraints=constraints)
    say(lines)
