"""What every command of a site's operator is given: the site's folder, and one of its studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
