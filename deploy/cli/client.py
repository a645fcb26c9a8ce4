"""``grandrounds client``: a site's side of its studies."""

import json
from pathlib import Path
from typing import Annotated

import typer

client = typer.Typer(name="client", help="A site's side of its studies.", no_args_is_help=True)


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
