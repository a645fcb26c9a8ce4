"""Services and containers that run a server's programs."""

from typing import Final

from ...common.system.privileges import User
from ...server.run.server_folder import ServerFolder
from ..services.rendering import FIRST_ID, UNITS, protect_home, write_units

_USER: Final = "grandrounds-server"


def write_server_units(folder: ServerFolder) -> list[str]:
    """Write ``units/`` in a server's folder, where files are missing; what is there, for its operator.

    The programs run as the folder's owner, unless that is root; those of a further study have its name. Raises
    StudyError and StorageError.
    """
    settings, path = folder.settings(), folder.path.absolute()
    evaluation, model = settings.evaluation.absolute(), settings.model and settings.model.absolute()
    owner, instance = path.stat().st_uid, "" if folder.home == folder else f"-{path.name}"
    values = {
        "folder": path,
        "instance": instance,
        "evaluation": evaluation,
        "model": model,
        "port": settings.port,
        "is_roots": owner == 0,
        "user": str(owner) if owner else _USER,
        "in_container": User.named(str(owner) if owner else FIRST_ID),
        "protect_home": protect_home(filter(None, (path, evaluation, model))),
    }
    templates = {  # by the name that the operator sees
        f"grandrounds-server{instance}.service": "grandrounds-server.service",
        f"grandrounds-study{instance}.service": "grandrounds-study.service",
        "compose.yaml": "server.compose.yaml",
        "Dockerfile": "Dockerfile",
    }
    return write_units(templates, path / UNITS, values)
