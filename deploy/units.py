"""Services, containers and a batch job that run a folder's programs: templates, filled in for this machine."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from unicodedata import category

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..client.site_folder import RESULTS, SiteFolder
from ..common.devices import PROCESSORS
from ..common.errors import StudyError
from ..common.files import write_missing
from ..common.privileges import User
from .server_folder import ServerFolder

UNITS: Final = "units"
# By the name that the operator sees, the template.
_SERVER: Final = {
    "grandrounds-server.service": "grandrounds-server.service",
    "grandrounds-study.service": "grandrounds-study.service",
    "compose.yaml": "server.compose.yaml",
    "Dockerfile": "Dockerfile",
}
_SITE: Final = {
    "grandrounds-worker.service": "grandrounds-worker.service",
    "grandrounds-node.service": "grandrounds-node.service",
    "compose.yaml": "site.compose.yaml",
    "Dockerfile": "Dockerfile",
    "client.sbatch": "client.sbatch",
}
_USER, _WORKER, _NODE = "grandrounds-server", "grandrounds-worker", "grandrounds-node"
_FIRST_ID, _SECOND_ID = "10001", "10002"  # in a container, which knows the machine's users by their ids alone
_HOMES: Final = tuple(map(Path, ("/home", "/root", "/run/user")))


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
        "in_container": User.named(str(owner) if owner else _FIRST_ID),
        "protect_home": _protect_home(filter(None, (path, evaluation, model))),
    }
    return _write(_SERVER, path / UNITS, values)


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
        "worker_in_container": User.named(_id_of(settings.worker_user, _FIRST_ID)),
        "node_in_container": User.named(_id_of(settings.node_user, _SECOND_ID)),
        "protect_home": _protect_home((path, data, model)),
    }
    return _write(_SITE, path / UNITS, values)


def _write(templates: Mapping[str, str], units: Path, values: Mapping[str, Any]) -> list[str]:
    environment = Environment(  # noqa: S701 (no HTML: each value is escaped for where it stands)
        loader=PackageLoader(__package__, "templates/units"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "word": _word,
        "argument": _argument,
        "mount_point": _mount_point,
        "shell": _shell,
        "yaml": _yaml,
        "outermost": _outermost,
    }
    machine = {
        "program": Path(sys.executable).with_name("grandrounds"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "image": f"grandrounds:{__version__}",
    }
    for name, template in templates.items():
        text = environment.get_template(template).render(values, **machine)
        write_missing(units / name, text.encode)
    return [
        f"to run it as a service, in {units}: {', '.join(templates)}; each says how at its head, and is written anew "
        "if you remove it and repeat this",
    ]


def _word(value: object) -> str:
    r"""One word of a systemd setting (systemd.syntax(7)).

    >>> print(_word(r'/srv/100% "a\b"'))
    "/srv/100%% \"a\\b\""
    """
    text = _plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _argument(value: object) -> str:
    """One argument of a systemd command, in which variables are replaced besides; in the program's own path none is.

    >>> print(_argument("/srv/a $b"))
    "/srv/a $$b"
    """
    return _word(value).replace("$", "$$")


def _mount_point(value: object) -> str:
    r"""One path of systemd's TemporaryFileSystem=, which is read once more, for options behind a colon.

    >>> print(_mount_point("/srv/a:b"))
    "/srv/a\\:b"
    """
    return _word(_plain(value).replace("\\", "\\\\").replace(":", "\\:"))


def _shell(value: object) -> str:
    return shlex.quote(_plain(value))


def _yaml(value: object) -> str:
    """A string in a compose file, in which variables are replaced: JSON's are YAML's.

    >>> print(_yaml("/srv/a $b"))
    "/srv/a $$b"
    """
    return json.dumps(_plain(value).replace("$", "$$"), ensure_ascii=False)


def _outermost(paths: Iterable[Path | None]) -> list[Path]:
    """The paths, without those that lie in another of them.

    >>> [str(path) for path in _outermost([Path("/srv/a"), Path("/srv/a/run"), Path("/srv/ab"), None])]
    ['/srv/a', '/srv/ab']
    """
    given = [path for path in paths if path is not None]
    return [path for path in given if not set(path.parents) & set(given)]


def _plain(value: object) -> str:
    """As text that a line of a file can hold. Raises StudyError."""
    text = str(value)
    if any(category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise StudyError(
            f"{text!r} has characters that no service's file can hold",
            why="a line that is broken there would start something else",
            fix="rename it",
        )
    return text


def _protect_home(read: Iterable[Path]) -> str:
    """Whether a service can do without what lies in people's homes, of which it at most reads."""
    places = [path.resolve() for path in (*read, Path(sys.prefix), Path(sys.base_prefix))]
    return "read-only" if any(place.is_relative_to(home) for place in places for home in _HOMES) else "yes"


def _id_of(user: str | None, otherwise: str) -> str:
    return user if user and user.isdecimal() else otherwise


def _account(user: str | None, otherwise: str) -> str:
    """What useradd is to be given: systemd starts nothing as an id that has no name.

    >>> _account("10001", "grandrounds-worker"), _account(None, "grandrounds-worker")
    ('--uid 10001 grandrounds-worker', 'grandrounds-worker')
    """
    return f"--uid {user} {otherwise}" if user and user.isdecimal() else _shell(user or otherwise)
