"""Services, containers and a batch job that run a site's programs."""

from typing import Final

from ...client.site.folder import RESULTS, SiteFolder
from ...common.model.devices import PROCESSORS
from ...common.system.privileges import User
from ..services.rendering import FIRST_ID, UNITS, protect_home, shell_word, write_units

_TEMPLATES: Final = {
    "grandrounds-worker.service": "grandrounds-worker.service",
    "grandrounds-node.service": "grandrounds-node.service",
    "compose.yaml": "site.compose.yaml",
    "Dockerfile": "Dockerfile",
    "client.sbatch": "client.sbatch",
}

_WORKER, _NODE = "grandrounds-worker", "grandrounds-node"

_SECOND_ID: Final = "10002"


def write_site_units(folder: SiteFolder) -> list[str]:
    """Write ``units/`` in a site's folder, where files are missing; what is there, for its operator.

    Raises StudyError and StorageError.
    """
    settings, path = folder.settings(), folder.path.absolute()
    data, model, run = (place.absolute() for place in (settings.data, settings.model, settings.socket.parent))
    values = {
        "site": settings.name,
        "folder": path,
        "node": path / folder.node.path.name,
        "node_written": folder.node.written.absolute(),
        "run": run,
        "data": data,
        "model": model,
        "on_gpu": settings.device != PROCESSORS,
        "records": [place.absolute() for place in (data, settings.held_out) if place],
        "written": [path / folder.state.name, path / RESULTS, path / folder.log.name, run],
        "worker_user": settings.worker_user or _WORKER,
        "node_user": settings.node_user or _NODE,
        "worker_account": _account(settings.worker_user, _WORKER),
        "node_account": _account(settings.node_user, _NODE),
        "worker_in_container": User.named(_id_of(settings.worker_user, FIRST_ID)),
        "node_in_container": User.named(_id_of(settings.node_user, _SECOND_ID)),
        "protect_home": protect_home((path, data, model)),
    }
    return write_units(_TEMPLATES, path / UNITS, values)


def _id_of(user: str | None, otherwise: str) -> str:
    return user if user and user.isdecimal() else otherwise


def _account(user: str | None, otherwise: str) -> str:
    """What useradd is to be given: systemd starts nothing as an id that has no name.

    >>> _account("10001", "grandrounds-worker"), _account(None, "grandrounds-worker")
    ('--uid 10001 grandrounds-worker', 'grandrounds-worker')
    """
    return f"--uid {user} {otherwise}" if user and user.isdecimal() else shell_word(user or otherwise)
