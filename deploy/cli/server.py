"""``grandrounds server``: the aggregation server's life."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .operators import say, until_stopped

server = typer.Typer(name="server", help="The aggregation server's life.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]


@server.command()
def init(
    folder: Folder,
    host: Annotated[str, typer.Option(help="The name or address by which hospitals reach this server.")] = "localhost",
    port: Annotated[int, typer.Option(help="The port that hospitals reach.")] = 9092,
    superlink_port: Annotated[int, typer.Option(help="The SuperLink's port, on loopback alone.")] = 9093,
) -> None:
    """Make keys, certificates and settings, where they are missing."""
    from .. import server_operator

    say(server_operator.init(_folder(folder), host=host, port=port, superlink_port=superlink_port))


@server.command()
def enroll(
    folder: Folder, card: Annotated[Path, typer.Argument(metavar="SITE.json", help="What a site sent.")]
) -> None:
    """Know a site by its keys."""
    from .. import server_operator

    say(server_operator.enroll(_folder(folder), card))


@server.command()
def bundle(folder: Folder) -> None:
    """Fix the study, once, and write it as the sites get it."""
    from .. import server_operator

    say(server_operator.bundle(_folder(folder)))


@server.command()
def start(folder: Folder) -> None:
    """Run Flower's SuperLink, its executor and the gate, until SIGTERM."""
    from .. import server_operator

    server_operator.start(_folder(folder), stopped=until_stopped(), say=lambda text: say([text]))


@server.command()
def run(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print each event as JSON.")] = False
) -> None:
    """Carry out the study, or go on with it, and tell what happens."""
    from ...common.errors import StoppedError
    from .. import server_operator

    for event in server_operator.run(_folder(folder)):
        typer.echo(json.dumps(event) if as_json else _line(event))
        if event["event"] == "stopped":
            raise StoppedError(
                f"the study stopped: {event['diagnosis']}",
                why="it is whole up to the last round that was closed",
                fix="mend that, and run the same command again",
            )


@server.command()
def status(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say where the study stands."""
    from .. import server_operator

    found = server_operator.status(_folder(folder))
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{name:20}{value}" for name, value in found.items()))


def _folder(path: Path) -> Any:
    from ..server_folder import ServerFolder

    return ServerFolder(path)


def _line(event: dict[str, Any]) -> str:
    match event["event"]:
        case "ExchangeClosed":
            return (
                f"round {event['round']}  attempt {event['attempt']}  {event['exchange']} of {len(event['answered'])}"
            )
        case "RoundClosed":
            spent = "" if event["epsilon_spent"] is None else f"  ε {event['epsilon_spent']:.2f} spent"
            return f"round {event['round']} closed  perplexity {event['perplexity']:.3g}{spent}"
        case "PhaseStarted":
            return f"{event['name']:12}{event['detail']}"
        case "PhaseEnded":
            return f"{event['name']:12}done in {event['seconds']:.0f} s"
        case "Waiting":
            return f"waiting for {', '.join(event['sites'])}"
        case other:
            return str(other)
