"""Services and containers that run a server's programs."""

from typing import Final

from ...common.system.privileges import User
from ...server.run.server_folder import ServerFolder
from ..services.rendering import FIRST_ID, UNITS, protect_home, write_units

# By the name that the operator sees, the template.
_TEMPLATES: Final = {
    "grandrounds-server.service": "grandrounds-server.service",
    "grandrounds-study.service": "grandrounds-study.service",
    "compose.yaml": "server.compose.yaml",
    "Dockerfile": "Dockerfile",
}

_USER: Final = "grandrounds-server"


def write_server_units(folder: ServerFolder) -> list[str]:
    """Write ``units/`` in a server's folder, where files are missing; what is there, for its operator.

    The programs run as the folder's owner, unless that is root. Raises StudyError and StorageError.
    """
    settings, path = folder.settings(), folder.path.absolute()
    evaluation, model = settings.evaluation.absolute(), settings.model and settings.model.absolute()
    owner = path.stat().st_uid
    values = {
        "folder": path,
        "evaluation": evaluation,
        "model": model,
        "port": settings.port,
        "is_roots": owner == 0,
        "user": str(owner) if owner else _USER,
        "in_container": User.named(str(owner) if owner else FIRST_ID),
        "protect_home": protect_home(filter(None, (path, evaluation, model))),
    }
    return write_units(_TEMPLATES, path / UNITS, values)
