"""A wheel, by what its file says of itself."""

import re
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

from ...common.crypto.identity import sha256
from ...common.errors import StudyError, reason

_METADATA: Final = re.compile(r"[^/]+\.dist-info/METADATA")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CLASSIFIER: Final = "License :: OSI Approved :: "
# Some packages give the whole text of their licence where its name belongs.
_LONGEST_LICENSE: Final = 100


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel: ``name`` in the form that all its spellings share, ``license`` as stated; ``sha256`` is the file's.

    ``requires`` are the names of all that it may need, under whatever condition.
    """

    path: Path
    name: str
    version: str
    sha256: str
    license: str | None
    requires: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "Wheel":
        """The wheel in a file. Raises StudyError where it is none."""
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = filter(_METADATA.fullmatch, archive.namelist())
                metadata = HeaderParser().parsestr(archive.read(name).decode())
            return cls(
                path=path,
                name=_normal(metadata["Name"]),
                version=metadata["Version"].strip(),
                sha256=sha256(path.read_bytes()),
                license=_license(metadata),
                requires=frozenset(map(_normal, metadata.get_all("Requires-Dist", []))),
            )
        except Exception as error:  # zipfile raises what it likes over flags and lengths that nobody writes
            raise StudyError(
                f"{path} is no wheel ({reason(error)})",
                why="a machine without a network gets every package as one",
                fix="give a file that ends in .whl, as `pip wheel` makes it",
            ) from error


def _normal(requirement: str) -> str:
    """The name at a requirement's beginning, as the index spells it.

    >>> _normal("Typing_Extensions>=4; python_version < '3.13'")
    'typing-extensions'
    """
    found = _NAME.match(requirement)
    if found is None:
        raise ValueError("a requirement without a name")
    return re.sub(r"[-_.]+", "-", found.group().rstrip("-_.")).lower()


def _license(metadata: Message) -> str | None:
    """The licence as the package states it: its expression, else its name, else its classifiers."""
    stated = metadata["License-Expression"] or metadata["License"] or ""
    if stated.strip() and stated.strip() != "UNKNOWN" and "\n" not in stated and len(stated) <= _LONGEST_LICENSE:
        return str(stated.strip())
    classifiers = metadata.get_all("Classifier", [])
    named = [text.removeprefix(_CLASSIFIER) for text in classifiers if text.startswith(_CLASSIFIER)]
    return ", ".join(named) or None
