"""Whether the program that runs is the one that a study pinned: its version, and the hash of its files.

A program cannot vouch for itself: one that was changed on purpose would say what is expected of it. This finds what
happens to honest people: another version, an update that stopped halfway, a file that was edited, left over or added.
"""

import json
from typing import Any

from ..errors import OtherProgramError
from ..version import __version__
from .package_hash import running_sha256


def check_code(*, version: str, sha256: str) -> None:
    """Raises OtherProgramError unless the program that runs has this version and files (``package_sha256``)."""
    if is_running(version, sha256):
        return
    raise OtherProgramError(
        f"the study runs {_named(version, sha256)}, and installed here is {running()}",
        why="the study's claim holds only where the code is the one that every site signed",
        fix="install the wheel of that hash anew, with `pip install --force-reinstall`; where the site has a reason to "
        "run another, ask the server's operator for a successor of the study",
    )


def check_code_of(text: bytes) -> None:
    """``check_code`` of what names the program in JSON, a manifest or a node's settings, before all of it is read.

    What names none is left to whoever reads it: another version may write other fields. Raises OtherProgramError.
    """
    stated = _stated(text)
    if stated is not None:
        check_code(version=stated[0], sha256=stated[1])


def check_form_of(text: bytes) -> None:
    """Why a manifest, in JSON, is none that this program writes: raises OtherProgramError where another wrote it.

    What names no program, or this one, is damaged, and left to whoever reads it.
    """
    stated = _stated(text)
    if stated is not None and not is_running(*stated):
        raise OtherProgramError(
            f"the study was made by {_named(*stated)}, in another form than what runs here reads, which is {running()}",
            why="what was signed means what its program takes it for: nothing of it is left out, nor filled in",
            fix="verify the study with that version, or go on with it; its wheel can be installed in an environment of "
            "its own",
        )


def other_program_of(text: bytes) -> str | None:
    """The program that JSON names as ``check_code_of`` reads it, in words; None where it is this one, or named by none.

    >>> other_program_of(b'{"package_version": "0.0.9", "package_sha256": "ab"}')
    'grandrounds 0.0.9 with files of SHA-256 ab'
    """
    stated = _stated(text)
    return None if stated is None or is_running(*stated) else _named(*stated)


def running() -> str:
    """The program that runs, in words: its version, and the hash of its files."""
    return f"{__version__} with files of {running_sha256()}"


def is_running(version: str, sha256: str) -> bool:
    """Whether the program that runs has this version, and files of this ``package_sha256``."""
    return (version, sha256) == (__version__, running_sha256())


def _named(version: str, sha256: str) -> str:
    return f"grandrounds {version} with files of SHA-256 {sha256}"


def _stated(text: bytes) -> tuple[str, str] | None:
    try:
        fields: Any = json.loads(text)
        return str(fields["package_version"]), str(fields["package_sha256"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
