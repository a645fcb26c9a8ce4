"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import os
import sys

import typer

from ...common.errors import GrandRoundsError
from .bench import bench
from .epsilon import epsilon
from .simulate import simulate

app = typer.Typer(
    name="grandrounds",
    help="Fine-tune one language model across hospitals, with patient-level privacy; no note leaves a hospital.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate)
app.command()(epsilon)
app.add_typer(bench)


def main() -> None:
    """Run a command; a refusal or failure is printed as its diagnosis, with exit code 1."""
    # Flower reports usage and asks for updates unless told otherwise.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        app()
    except GrandRoundsError as error:
        print(f"grandrounds: {error.diagnostics()}", file=sys.stderr)
        sys.exit(1)
