"""``grandrounds server``: the aggregation server's side of a study."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from .terminal import at_terminal, say, until_stopped

if TYPE_CHECKING:
    from ...common.study.about import AboutSection
    from ...server.run.server_folder import ServerFolder

study = typer.Typer(name="study", help="Further studies of a server, with the same keys.", no_args_is_help=True)
server = typer.Typer(name="server", help="The aggregation server's side of a study.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
StudyFile = Annotated[
    Path | None, typer.Option("--study", help="A study to begin with, such as `grandrounds plan --output` writes.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ABOUT = "What the study says of itself: every site signs it, and its report shows it"
# What is asked for at a terminal, of what was not given.
_QUESTIONS = {
    "title": "What people call the study",
    "purpose": "What it is for, in one sentence",
    "institutions": "Institutions that take part or coordinate it, with ; between them",
    "contact": "Who answers questions about it",
    "begins": "The day from which it may run (2026-12-01)",
    "ends": "The last day on which it may run",
}
CERTIFICATES = "A certificate of your own (all three, or none for one that is made here)"


@server.command()
def init(
    folder: Folder,
    host: Annotated[str, typer.Option(help="The name or address by which hospitals reach this server.")] = "localhost",
    port: Annotated[int, typer.Option(help="The port that they reach.")] = 9092,
    superlink_port: Annotated[int, typer.Option(help="Of Flower's SuperLink, on loopback alone.")] = 9093,
    title: Annotated[str | None, typer.Option(help="What people call the study.", rich_help_panel=ABOUT)] = None,
    purpose: Annotated[str | None, typer.Option(help="What it is for, in one sentence.", rich_help_panel=ABOUT)] = None,
    institution: Annotated[
        list[str] | None,
        typer.Option(help="Who takes part or coordinates it; once for each.", rich_help_panel=ABOUT),
    ] = None,
    contact: Annotated[str | None, typer.Option(help="Who answers questions about it.", rich_help_panel=ABOUT)] = None,
    begins: Annotated[
        str | None, typer.Option(help="The day from which it may run.", metavar="DAY", rich_help_panel=ABOUT)
    ] = None,
    ends: Annotated[
        str | None, typer.Option(help="The last day on which it may run.", metavar="DAY", rich_help_panel=ABOUT)
    ] = None,
    study: StudyFile = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Public or synthetic records that adapters are evaluated on (.jsonl .csv .parquet)."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="With its chain (PEM).", rich_help_panel=CERTIFICATES)
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its key (PEM).", rich_help_panel=CERTIFICATES)] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The authority that sites are to trust (PEM).", rich_help_panel=CERTIFICATES)
    ] = None,
) -> None:
    """Make keys, certificates, settings and a study to edit, where they are missing."""
    from ...server.run.server_folder import ServerFolder
    from ..server_ops import commands as server_operator

    given = [path for path in (certificate, certificate_key, ca) if path is not None]
    if len(given) not in (0, 3):
        from ...common.errors import StudyError

        raise StudyError(
            f"of --certificate, --certificate-key and --ca, {len(given)} are given",
            why="the server shows a certificate, proves by its key that it is its own, and sites trust who issued it",
            fix="give all three, or none of them: then they are made",
        )
    certificates = (given[0], given[1], given[2]) if given else None
    place = ServerFolder(folder)
    said = {"title": title, "purpose": purpose, "institutions": institution, "contact": contact}
    about = _about({**said, "begins": begins, "ends": ends}, ask=at_terminal() and not place.study_toml.exists())
    say(
        server_operator.init(
            place,
            host=host,
            port=port,
            superlink_port=superlink_port,
            certificates=certificates,
            study=study,
            evaluation=evaluation,
            about=about,
        )
    )


@server.command()
def enroll(
    folder: Folder,
    cards: Annotated[list[Path], typer.Argument(metavar="SITE.json...", help="What sites sent, a file each.")],
) -> None:
    """Know sites by their keys."""
    from ..server_ops import commands as server_operator

    say(server_operator.enroll(_folder(folder), *cards))


@server.command()
def bundle(
    folder: Folder,
    redo: Annotated[bool, typer.Option("--redo", help="Fix anew what has not begun, as study.toml now says.")] = False,
) -> None:
    """Fix the study, once, and write study.zip, which sites get; or show what was fixed, and refuse edits to it."""
    say([f"reading the study in {folder}"])  # before what takes a while to load
    from ..server_ops import bundling

    fix = bundling.bundle_anew if redo else bundling.bundle
    say(fix(_folder(folder), say=lambda line: say([line])))


@server.command()
def amend(folder: Folder) -> None:
    """Fix the next manifest of a study that has begun: sites join, leave or change keys, or the program is patched."""
    say([f"reading the study in {folder}"])
    from ..server_ops import bundling

    say(bundling.amend(_folder(folder)))


@server.command()
def dismiss(folder: Folder, name: Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]) -> None:
    """Know a site no more, and let its node in no more."""
    from ..server_ops import commands as server_operator

    say(server_operator.dismiss(_folder(folder), name))


@server.command()
def start(folder: Folder) -> None:
    """Let sites connect: run Flower's SuperLink, its executor and the gate, until SIGTERM."""
    from ..server_ops import commands as server_operator

    server_operator.start(_folder(folder), stopped=until_stopped(), say=lambda line: say([line]))


@server.command()
def run(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print each event as JSON.")] = False
) -> None:
    """Carry the study out, go on with it, or follow it."""
    from ...common.errors import StoppedError
    from ...server.run.progress_file import Finished, RunBegan, Stopped, Waiting, line_of
    from ..server_ops import follow as server_run
    from ..views.display import Display

    place = _folder(folder)
    try:
        with Display(quiet=as_json) as display:
            for event in server_run.run(place):
                if as_json:
                    typer.echo(line_of(event))
                elif isinstance(event, Waiting):
                    who = " and ".join(event.sites)
                    waiting = f"for {who} to connect: have them run `grandrounds client start`"
                    display.console.print(f"{'waiting':<15}{waiting}", highlight=False, soft_wrap=True)
                elif not isinstance(event, RunBegan | Finished | Stopped):
                    display.observe(event)
    except KeyboardInterrupt:
        raise StoppedError(
            "the study is no longer followed",
            why="it goes on by itself, as long as the server is started",
            fix=f"follow it again with: grandrounds server run {folder}",
        ) from None
    if not as_json:
        display.summary(server_run.report(place), place.study.path)


@server.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Say where the study stands, and what comes next."""
    from ..server_ops import follow as server_run

    found = server_run.status(_folder(folder))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_status(found)


@study.command("new")
def new_study(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The study's, and its folder's below DIR/studies.")],
    study: StudyFile = None,
    port: Annotated[int | None, typer.Option(help="The port that hospitals reach (default: the next).")] = None,
    superlink_port: Annotated[int | None, typer.Option(help="Of its SuperLink (default: the next).")] = None,
) -> None:
    """Make the folder of another study, with the server's keys and sites; all commands take it as they take DIR."""
    from ..server_ops import studies

    say(studies.new_study(_folder(folder), name, study=study, port=port, superlink_port=superlink_port))


@study.command("list")
def list_studies(folder: Folder) -> None:
    """Say of each study of a server where it stands, and what comes next."""
    from ..server_ops import studies

    say(studies.list_studies(_folder(folder)))


server.add_typer(study)


@server.command()
def report(folder: Folder, as_json: AsJson = False) -> None:
    """Show what came of the study."""
    from ..server_ops import follow as server_run
    from ..views.console import plain_console
    from ..views.summary import print_summary

    place = _folder(folder)
    found = server_run.report(place)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_summary(plain_console(), found, place.study.path, {})


def _about(said: dict[str, Any], *, ask: bool) -> "AboutSection":
    """What is said of a study: as it was given, and as it is answered where something was not. Raises StudyError."""
    from ...common.schema import validated
    from ...common.study.about import AboutSection

    if ask:
        typer.echo(f"{ABOUT}. Enter leaves one out.")
        for name in (name for name, value in said.items() if not value):
            answer = partial(_answer, name)
            said[name] = typer.prompt(_QUESTIONS[name], default="", show_default=False, value_proc=answer)
    return validated(AboutSection, {name: value for name, value in said.items() if value})


def _answer(name: str, text: str) -> str | list[str]:
    """What was answered, if a study can say it; else it is asked for again."""
    from ...common.errors import StudyError
    from ...common.schema import validated
    from ...common.study.about import AboutSection

    value = [part.strip() for part in text.split(";")] if name == "institutions" and text else text
    try:
        validated(AboutSection, {name: value} if value else {})
    except StudyError as error:
        raise click.UsageError(error.what) from error
    return value


def _folder(path: Path) -> "ServerFolder":
    """The folder that ``init`` made; raises StudyError where there is none, or its settings cannot be used."""
    from ...server.run.server_folder import ServerFolder

    place = ServerFolder(path)
    place.settings()
    return place


# What Flower says of a node, as its server's operator would. Of a worker behind it this tells nothing.
_CONNECTIONS = {
    "registered": "enrolled {since}, not connected since",
    "online": "connected since {since}",
    "offline": "away since {since}",
    "unknown": "",
}


def _print_status(found: dict[str, Any]) -> None:
    from rich.table import Table

    from ...server.report.claim import count
    from ...server.report.rounding import number, up
    from ..views.console import plain_console

    lines = [
        ("server", "started" if found["started"] else "not started, so that nothing is known of who is connected"),
        ("certificate", found["certificate"]),
    ]
    if "study" in found:
        (rounds, planned), (attempts, most) = found["rounds"], found["attempts"]
        lines += [
            ("study", "closed" if found["closed"] else "running" if found["running"] else "not running"),
            ("manifest", found["manifest"]),
            ("rounds", f"{rounds} of {planned} in {attempts} attempts, of at most {most}"),
        ]
        if found["epsilon"] is not None:
            spent = up(found["epsilon_spent"] or 0.0)
            lines.append(("privacy", f"ε {spent} of {up(found['epsilon'])} at δ = {found['delta']:g}"))
            persons = [
                f"{up(epsilon)} at {count(int(sites), 'site')}"
                for sites, epsilon in found["epsilon_of_persons"].items()
            ]
            if persons:  # none where no useful bound exists
                lines.append(("a patient", f"ε {', '.join(persons)}, by the attempts that were paid for so far"))
        if found["perplexity"] is not None:
            lines.append(("perplexity", number(found["perplexity"])))
    if found["last_error"] is not None:
        lines.append(("last run", found["last_error"]))
    sites = Table.grid(padding=(0, 2))
    for name, site in found["sites"].items():
        signed = (
            "signed the ledger" if name in found["closing_signatures"] else "signed" if name in found["signed"] else ""
        )
        connection = _CONNECTIONS.get(site["connection"], site["connection"]).format(since=site["since"])
        sites.add_row(f"  {name}", connection, signed, site["last_error"] or "")
    console = plain_console(highlight=False, soft_wrap=True)
    for field, text in lines:
        console.print(f"{field:<12}{text}")
    console.print(sites)
    console.print(f"{'next':<12}{found['next']}")
