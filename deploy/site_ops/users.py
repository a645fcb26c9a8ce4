"""The two users of a site's machine, and what of the site's folder belongs to whom.

Root alone can start both, and it trusts neither: the folder itself and its settings, which say who runs as whom, stay
root's, and so do the studies' own. The worker's user has the key, the state, and of each study ``store/`` and
``results/``; the node's user reads a study's ``node/``, has ``node/var/``, and reaches the worker's socket. In what is
theirs root opens nothing (``owner``).
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...client.site.folder import FINGERPRINT_KEY, KEY, SiteFolder, SiteSettings
from ...client.site.joined_study import JoinedStudy
from ...common.errors import StorageError, StudyError
from ...common.system.files import make_folder
from ...common.system.privileges import User
from .owner import act_as

WARNING: Final = (
    "warning: root runs both parts of this site. Whoever took over the part that talks to the server could read the "
    "records and the key. Name worker_user and node_user in site.toml, and start this again"
)


@dataclass(frozen=True, kw_only=True)
class SiteUsers:
    """Who reads records and has the key, and who talks to the server."""

    worker: User
    node: User

    @classmethod
    def of(cls, settings: SiteSettings) -> "SiteUsers | None":
        """The users that a site's settings name, if they do. Raises StudyError."""
        return cls.named(settings.worker_user, settings.node_user)

    @classmethod
    def named(cls, worker: str | None, node: str | None) -> "SiteUsers | None":
        """The users of these names or ids; None where neither is given. Raises StudyError."""
        if worker is None and node is None:
            return None
        if worker is None or node is None:
            raise _no_two(worker, node, "name one user, and not two")
        users = cls(worker=User.named(worker), node=User.named(node))
        if 0 in (users.worker.uid, users.node.uid) or users.worker.uid == users.node.uid:
            raise _no_two(worker, node, "are one user, or root")
        return users


def _no_two(worker: str | None, node: str | None, what: str) -> StudyError:
    return StudyError(
        f"worker_user = {worker} and node_user = {node} {what}",
        why="the part that talks to the server is kept from records and key by being another user",
        fix="name two users who own nothing else, or none",
    )


def operators_users(settings: SiteSettings) -> SiteUsers | None:
    """Both users, for a command that only root can give where they are named. Raises StudyError."""
    users = SiteUsers.of(settings)
    if users is not None and os.geteuid() != 0:
        raise StudyError(
            "this site's two parts run as users of their own, and this is not root",
            why="root alone can start both, and give each what it needs of the folder",
            fix="run this as root; `client worker` and `client node` may be run by their own users",
        )
    return users


def worker_of(settings: SiteSettings) -> User | None:
    """Whom records, key and state belong to, where that is not whoever runs this. Raises StudyError."""
    users = operators_users(settings)
    return users.worker if users else None


def act_as_worker(folder: SiteFolder) -> None:
    """Go on as the user who reads the records, if site.toml names one. Raises StudyError."""
    users = SiteUsers.of(folder.settings())
    if users is not None:
        act_as(users.worker)


def hand_over(folder: SiteFolder, users: SiteUsers) -> None:
    """As root: give each user its part of the folder, whatever was made in it meanwhile. Raises StorageError."""
    try:
        _hand_over(folder, users.worker, users.node)
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder.path} cannot be given to its user: {error.strerror}",
            why="each part of the site reads and writes its own part of the folder, and no other",
            fix="keep the folder on a local disk, and none of its keys and folders as a link",
        ) from error


def _hand_over(folder: SiteFolder, worker: User, node: User) -> None:
    _set(folder.path, 0, 0, 0o711)
    # Such as policy.toml, or a list of patients: for root and the worker alone.
    _set_files(folder.path, worker.gid)
    for name in (KEY, FINGERPRINT_KEY):
        if (folder.path / name).exists():
            _set(folder.path / name, worker.uid, worker.gid, 0o600)
    _give(folder.state, worker)
    _give(folder.prepared, worker)
    make_folder(folder.studies)
    _set(folder.studies, 0, 0, 0o711)
    for study in folder.joined():
        _hand_over_study(study, folder.settings().socket, worker, node)


def _hand_over_study(study: JoinedStudy, socket: Path, worker: User, node: User) -> None:
    _set(study.path, 0, 0, 0o711)
    _set_files(study.path, worker.gid)
    _keep(study.node.path, node.gid)
    for path, owner in ((study.store, worker), (study.kept, worker), (study.node.written, node)):
        _give(path, owner)
    run = study.socket(socket).parent
    if run.is_relative_to(study.path):
        make_folder(run)
        # setgid: the socket gets the folder's group, to which the worker's user does not belong.
        _set(run, worker.uid, node.gid, 0o2750)


def _keep(path: Path, gid: int) -> None:
    """A folder of root's, which a group may read."""
    make_folder(path)
    if path.lstat().st_uid != 0:
        raise PermissionError(errno.EPERM, "it is another user's, who may have put anything there", str(path))
    _set(path, 0, gid, 0o750)
    _set_files(path, gid)


def _set_files(path: Path, gid: int) -> None:
    """The files of root's in a folder of root's are for a group to read."""
    for file in path.iterdir():
        if file.is_file() and not file.is_symlink() and file.stat().st_uid == 0:
            _set(file, 0, gid, 0o640)


def _give(path: Path, owner: User) -> None:
    """A folder of a user's, with all that is in it. Nothing is touched in one that is its own already."""
    make_folder(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != owner.uid:
            _give_open(descriptor, owner)
    finally:
        os.close(descriptor)


def _give_open(at: int, owner: User) -> None:
    os.fchown(at, 0, 0)  # first, so that nobody exchanges what is looked at
    os.fchmod(at, 0o700)
    for name in os.listdir(at):
        status = os.lstat(name, dir_fd=at)
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            try:
                _give_open(below, owner)
            finally:
                os.close(below)
            continue
        _check_single(status, name)
        os.chown(name, owner.uid, owner.gid, dir_fd=at, follow_symlinks=False)
    os.fchown(at, owner.uid, owner.gid)


def _set(path: Path, uid: int, gid: int, mode: int) -> None:
    """Links are refused, and second names: whoever had the folder before may have put one there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            _check_single(status, str(path))
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _check_single(status: os.stat_result, name: str) -> None:
    if status.st_nlink > 1:
        raise PermissionError(errno.EMLINK, "the file has a second name, elsewhere", name)
