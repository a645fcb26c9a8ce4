"""Acting as whoever owns a folder: what root does there, it does by a child that has become the owner.

A folder's owner can put anything there at any moment: a link, a second name of a file, a database's journal that names
another file. Followed with root's power, each reaches what is root's; followed with the owner's own, nothing new.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...common import errors
from ...common.errors import GrandRoundsError, StorageError, StudyError
from ...common.system.privileges import User, become


def act_as(user: User) -> None:
    """Go on as ``user`` for good. Raises StudyError unless this is root, or that user already."""
    if os.geteuid() == 0:
        become(user)
        os.environ["HOME"] = user.home
    elif os.geteuid() != user.uid:
        raise StudyError(
            f"this is for the user with the id {user.uid}, and is run by {os.geteuid()}",
            why="each part of the site runs as the user that site.toml names for it",
            fix="run this as that user, or as root",
        )


def owner_of(path: Path) -> User | None:
    """Who owns ``path``, where that is neither root nor, this not being root, anybody else's business."""
    if os.geteuid() != 0 or not path.exists() or (owner := path.stat().st_uid) == 0:
        return None
    return User.named(str(owner))


def act_as_owner(path: Path) -> None:
    """Go on for good as the owner of a folder that is another user's than root's, if this is root."""
    if (owner := owner_of(path)) is not None:
        act_as(owner)


def done_as(user: User | None, act: Callable[[], Any]) -> Any:
    """What ``act`` returns (a value of JSON), done in a child that has become ``user``; here, if there is none.

    Raises what ``act`` raises, and StorageError where that is no GrandRoundsError.
    """
    if user is None:
        return act()
    sys.stdout.flush()  # or the child would print it again
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            json.dump(_outcome(user, act), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    outcome = json.loads(said or '{"failed": "it ended"}')
    if "refused" in outcome:
        kind, what, why, fix = outcome["refused"]
        raise getattr(errors, kind, GrandRoundsError)(what, why=why, fix=fix)
    if "failed" in outcome:
        raise StorageError(
            f"the user with the id {user.uid} could not do this ({outcome['failed']})",
            why="what lies in a user's folder is read and written by that user, and not by root",
            fix="see to it that the site's folders are on a local disk, and each its own user's",
        )
    return outcome["done"]


def _outcome(user: User, act: Callable[[], Any]) -> dict[str, Any]:
    try:
        act_as(user)
        return {"done": act()}
    except GrandRoundsError as error:
        return {"refused": (type(error).__name__, error.what, error.why, error.fix)}
    except BaseException as error:  # by its type alone: its text could quote a record
        return {"failed": type(error).__name__}
