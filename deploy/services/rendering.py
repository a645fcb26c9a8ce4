"""Services, containers and a batch job that run a folder's programs: templates, filled in for this machine."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from unicodedata import category

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...common.errors import StudyError
from ...common.system.files import write_missing
from ...common.version import __version__

UNITS: Final = "units"
FIRST_ID: Final = "10001"  # in a container, which knows the machine's users by their ids alone
_HOMES: Final = tuple(map(Path, ("/home", "/root", "/run/user")))


def write_units(templates: Mapping[str, str], units: Path, values: Mapping[str, Any]) -> list[str]:
    """Fill in ``templates`` (by the name that the operator sees), where files are missing; what is there, in words."""
    environment = Environment(  # noqa: S701 (no HTML: each value is escaped for where it stands)
        loader=PackageLoader(__package__, "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "word": _word,
        "argument": _argument,
        "mount_point": _mount_point,
        "shell": shell_word,
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


def shell_word(value: object) -> str:
    """One word of a shell's command."""
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


def protect_home(read: Iterable[Path]) -> str:
    """Whether a service can do without what lies in people's homes, of which it at most reads."""
    places = [path.resolve() for path in (*read, Path(sys.prefix), Path(sys.base_prefix))]
    return "read-only" if any(place.is_relative_to(home) for place in places for home in _HOMES) else "yes"
