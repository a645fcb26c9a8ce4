"""What every command of a site's operator is given, its folder and one of its studies; and `client watch`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import until_stopped

if TYPE_CHECKING:
    from ...client.site.folder import SiteFolder

Study = Annotated[
    str, typer.Argument(metavar="[STUDY]", help="The study's name or how it begins; not needed where there is one.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", readable=False, help="The site's folder.")]


def site_of(path: Path) -> "SiteFolder":
    """The site in a folder, from here on as whose folder it is."""
    from ...client.site.folder import SiteFolder
    from ..site_ops.owner import act_as_owner

    act_as_owner(path)
    return SiteFolder(path)


def watch(
    folder: Folder,
    study: Study = "",
    once: Annotated[bool, typer.Option("--once", help="Show what was seen so far, and end.")] = False,
) -> None:
    """Follow the steps of this site's training, exact and for its operator alone (training_view in site.toml)."""
    from ..site_ops.users import act_as_worker
    from ..views.console import plain_console
    from ..views.training import follow

    site = site_of(folder)
    joined, is_written = site.study(study), site.settings().training_view
    act_as_worker(site)
    stopped = (lambda: True) if once else until_stopped()
    follow(plain_console(highlight=False), joined.training, is_written=is_written, stopped=stopped)
