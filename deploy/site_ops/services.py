"""Services, containers and a batch job that run a site's programs."""

from typing import Final

from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...common.model.devices import PROCESSORS
from ...common.system.privileges import User
from ..services.rendering import FIRST_ID, UNITS, protect_home, shell_word, write_units

_WORKER, _NODE = "grandrounds-worker", "grandrounds-node"

_SECOND_ID: Final = "10002"


def write_site_units(folder: SiteFolder, study: JoinedStudy) -> list[str]:
    """Write ``units/`` in a study's folder, where files are missing; what is there, for its operator.

    Raises StudyError and StorageError.
    """
    settings, path, own = folder.settings(), folder.path.absolute(), study.path.absolute()
    study = JoinedStudy(own)
    socket = study.socket(settings.socket)
    model, run = settings.model.absolute(), socket.parent.absolute()
    named = [path.absolute() for source in (settings.data, settings.held_out) if source for path in source.paths]
    records = [one for one in named if not path.is_relative_to(one)]  # of files in the site's own folder, users decide
    worker, node = f"{_WORKER}-{study.name}.service", f"{_NODE}-{study.name}.service"
    values = {
        "site": settings.name,
        "study": study.name,
        "folder": path,
        "worker": worker,
        "node_service": node,
        "node": study.node.path,
        "node_written": study.node.written,
        "run": run,
        "model": model,
        "gpus": sum(device != PROCESSORS for device in settings.devices),
        "shards": settings.may_shard,
        "records": records,
        "written": [path / folder.state.name, path / folder.prepared.name, study.store, study.kept, run],
        "worker_user": settings.worker_user or _WORKER,
        "node_user": settings.node_user or _NODE,
        "worker_account": _account(settings.worker_user, _WORKER),
        "node_account": _account(settings.node_user, _NODE),
        "worker_in_container": User.named(_id_of(settings.worker_user, FIRST_ID)),
        "node_in_container": User.named(_id_of(settings.node_user, _SECOND_ID)),
        "protect_home": protect_home((path, *records, model)),
    }
    templates = {
        worker: "grandrounds-worker.service",
        node: "grandrounds-node.service",
        "compose.yaml": "site.compose.yaml",
        "Dockerfile": "Dockerfile",
        "client.sbatch": "client.sbatch",
    }
    return write_units(templates, own / UNITS, values)


def _id_of(user: str | None, otherwise: str) -> str:
    return user if user and user.isdecimal() else otherwise


def _account(user: str | None, otherwise: str) -> str:
    """What useradd is to be given: systemd starts nothing as an id that has no name.

    >>> _account("10001", "grandrounds-worker"), _account(None, "grandrounds-worker")
    ('--uid 10001 grandrounds-worker', 'grandrounds-worker')
    """
    return f"--uid {user} {otherwise}" if user and user.isdecimal() else shell_word(user or otherwise)
