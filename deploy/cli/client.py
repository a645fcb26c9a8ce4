"""``grandrounds client``: a site's side of its studies."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .operators import confirmed, say, until_stopped

client = typer.Typer(name="client", help="A site's side of its studies.", no_args_is_help=True)


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]


@client.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The site's name in studies.")],
    data: Annotated[Path, typer.Option(help="The site's records (.jsonl .csv .parquet).")],
    model: Annotated[str, typer.Option(help="The base model: its folder, or builtin.")] = "builtin",
) -> None:
    """Make the site's keys, settings and policy, where they are missing."""
    from ...client.site import SiteFolder
    from .. import site_operator

    say(site_operator.init(SiteFolder(folder), name=name, data=data, model=model))


@client.command()
def join(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(metavar="STUDY.zip", help="The study, as the server's operator sent it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked.")] = False,
) -> None:
    """Show a study against the site's policy and budget; then agree to it, or not."""
    from ...client.site import SiteFolder
    from .. import site_operator
    from ..bundle import Bundle, described

    study = Bundle.read(bundle)
    for field, text in described(study.manifest).items():
        typer.echo(f"{field:10}{text}")
    say(
        site_operator.join_study(
            SiteFolder(folder), study, agreed=lambda agreement: yes or confirmed("Does this site agree?")
        )
    )


@client.command()
def check(folder: Folder) -> None:
    """Read the site's own records and take one real private step, of which nothing is kept or sent."""
    from ...client.site import SiteFolder
    from .. import site_operator

    say(site_operator.check(SiteFolder(folder)))


@client.command()
def start(folder: Folder) -> None:
    """Run the worker, and what carries its messages, until SIGTERM."""
    import logging

    from ...client.site import SiteFolder
    from .. import site_operator

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    site_operator.start(SiteFolder(folder), stopped=until_stopped(), say=lambda text: say([text]))


@client.command()
def worker(folder: Folder) -> None:
    """Run the worker alone: it reads the records and has the keys, and needs no network."""
    from ...client.listener import serve
    from ...client.site import SiteFolder, open_site
    from ...client.site_log import log_to

    site = SiteFolder(folder)
    log_to(site.log)
    settings = site.settings()
    serve(open_site(site), settings.socket, users=settings.users)


@client.command()
def pause(folder: Folder) -> None:
    """Take part in nothing new until `client unpause`; an attempt that was paid for is finished."""
    from ...client.site import SiteFolder

    SiteFolder(folder).pause()


@client.command()
def unpause(folder: Folder) -> None:
    """Take part again."""
    from ...client.site import SiteFolder

    SiteFolder(folder).go_on()


@client.command()
def budget(
    state: Annotated[Path, typer.Option(help="The folder of the site's state.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with the same here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the site's patients may be asked to bear, what studies have set aside of it, and what is left."""
    from rich.console import Console

    from ...client.reservations import Reservations
    from ...client.site_database import SiteDatabase
    from ...common.files import write_atomically
    from .budget_page import budget_figures, print_budget, render_budget

    database = SiteDatabase.open_existing(state)
    try:
        statements = Reservations(database).statements()
    finally:
        database.close()
    if html is not None:
        write_atomically(html, render_budget(statements).encode())
    if as_json:
        typer.echo(json.dumps({"assets": budget_figures(statements)}))
        return
    print_budget(Console(highlight=False), statements)
