"""Whether the program that runs is the one that a study pinned: its version, and the hash of its files.

A program cannot vouch for itself: one that was changed on purpose would say what is expected of it. This finds what
happens to honest people: another version, an update that stopped halfway, a file that was edited, left over or added.
"""

import json
from typing import Any

from ..errors import StudyError
from ..version import __version__
from .package_hash import running_sha256


def check_code(*, version: str, sha256: str) -> None:
    """Raises StudyError unless the program that runs has this version and these files (``package_sha256``)."""
    running = running_sha256()
    if (version, sha256) == (__version__, running):
        return
    raise StudyError(
        f"the study runs grandrounds {version} with files of SHA-256 {sha256}, and installed here is {__version__} "
        f"with files of {running}",
        why="the study's claim holds only where the code is the one that every site signed",
        fix="install the wheel of that hash anew, with `pip install --force-reinstall`; where the site has a reason to "
        "run another, ask the server's operator for a successor of the study",
    )


def check_code_of(text: bytes) -> None:
    """``check_code`` of what names the program in JSON, a manifest or a node's settings, before all of it is read.

    What names none is left to whoever reads it: another version may write other fields. Raises StudyError.
    """
    try:
        fields: Any = json.loads(text)
        version, sha256 = fields["package_version"], fields["package_sha256"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    check_code(version=str(version), sha256=str(sha256))
