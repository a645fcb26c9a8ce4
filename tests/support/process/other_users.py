"""What other users of this machine can and cannot do, where the tests run as root."""

import encodings.utf_8_sig  # noqa: F401
import json
import os
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import dp_accounting.pld  # noqa: F401
import pytest
import scipy.signal  # noqa: F401

from grandrounds.common.system.privileges import User, become
from support.places import ROOT

# What a child would load is loaded here: as another user it may not read root's Python.
AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can act as other users"
)
# Makes folders that are closed to others passable, for one command and what it starts: nothing of the machine changes.
_OPENED = """
place=$(mktemp -d)
for needed in $NEEDED; do mkdir -p "$place$needed"; mount --bind "$needed" "$place$needed"; done
for closed in $CLOSED; do mount -t tmpfs -o mode=755 none "$closed"; done
for needed in $NEEDED; do mkdir -p "$needed"; mount --bind "$place$needed" "$needed"; done
exec "$@"
"""


def user(uid):
    return User(uid=uid, gid=uid, home="/")


def done_as(user, act):
    """What ``act`` returns in a process of ``user``; the name of what it raises, if it does."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([0])  # which it must not keep
            become(user)
            said = act()
        except Exception as error:
            said = type(error).__name__
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return json.loads(said.read())


@contextmanager
def open_folder():
    """A folder that all users can pass: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def reachable_by_all(command):
    """The command such that every user can run Python and this program, wherever they are installed."""
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
    closed = {path for place in needed for path in (place, *place.parents) if not path.stat().st_mode & stat.S_IXOTH}
    outermost = {path for path in closed if not closed & set(path.parents)}
    hidden = {place for place in needed if outermost & {place, *place.parents}}
    lists = {"NEEDED": hidden, "CLOSED": outermost}
    variables = [f"{name}={' '.join(map(str, paths))}" for name, paths in lists.items()]
    return ["env", *variables, "unshare", "--mount", "sh", "-ec", _OPENED, "sh", *map(str, command)]
