"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperArgument

from ...common.errors import GrandRoundsError
from ...common.system.privileges import keep_memory_private
from ...common.system.processes import QUIET_FLOWER
from ...common.version import __version__
from .adapter import adapter
from .audit import audit
from .bench import bench
from .client import client
from .epsilon import epsilon
from .generate import generate
from .options import StudyCommand
from .plan import PlanCommand, plan
from .registry import registry
from .server import server
from .simulate import simulate
from .verify import verify
from .wheelhouse import wheelhouse

_ENVIRONMENT = {
    **QUIET_FLOWER,
    # Threads that spin while they wait make a busy machine several times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}

app = typer.Typer(
    name="grandrounds",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=StudyCommand)(simulate)
app.command(cls=PlanCommand)(plan)
app.command()(epsilon)
app.command()(verify)
app.command()(audit)
app.command()(wheelhouse)
app.command()(generate)
app.add_typer(client)
app.add_typer(server)
app.add_typer(adapter)
app.add_typer(registry)
app.add_typer(bench)


_make_argument = TyperArgument.__init__


def _with_its_help(argument: TyperArgument, **given: Any) -> None:
    """typer 0.20 gives an argument its help before click 8.5 makes it, which takes that away."""
    _make_argument(argument, **given)
    argument.help = given["help"]


TyperArgument.__init__ = _with_its_help  # type: ignore[assignment, method-assign]


def _version(asked: bool) -> None:
    """Both of what a study pins."""
    if asked:
        from ...common.system.package_hash import running_sha256

        typer.echo(f"grandrounds {__version__}\nSHA-256 of its files: {running_sha256()}")
        raise typer.Exit


@app.callback()
def grandrounds(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and hash of the program.")
    ] = False,
) -> None:
    """Fine-tune one language model across hospitals, with patient-level privacy; no note leaves a hospital."""


@app.command()
def flower_app() -> None:
    """Print the folder of the Flower app, for `flwr run`."""
    from ..flower.archive import app_folder

    typer.echo(app_folder())


def main() -> None:
    """Run a command; a refusal or failure is printed as its diagnosis, with exit code 1."""
    keep_memory_private()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no ε shows a question mark instead of a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except GrandRoundsError as error:
        print(f"grandrounds: {error.diagnostics()}", file=sys.stderr)
        sys.exit(1)
