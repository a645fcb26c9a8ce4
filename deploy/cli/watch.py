"""``grandrounds client watch``: a site's training as its operator sees it, and nobody else."""

from typing import Annotated

import typer

from .site import Folder, Study, site_of
from .terminal import until_stopped


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
