"""What a process may do, and what others may with it: its user, its networks, who may read its memory."""

import ctypes
import os
import pwd
import resource
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Final

from ..errors import StudyError

LIBC: Final = ctypes.CDLL(None)  # loaded here, since a child may not before its program starts
_CLONE_NEWNET: Final = 0x40000000
_SET_INTERFACE_FLAGS: Final = 0x8914  # netdevice(7), SIOCSIFFLAGS
_LOOPBACK_UP: Final = struct.pack("16sH22x", b"lo", 1)  # an ifreq whose flags are IFF_UP
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_LOGIN: Final = Path("/proc/self/loginuid")
_IPV4, _IPV6 = Path("/proc/self/net/route"), Path("/proc/self/net/ipv6_route")


@dataclass(frozen=True, kw_only=True)
class User:
    """A user of this machine, with the one group that it is given."""

    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> "User":
        """The user of a name, or of an id, which need not have a name. Raises StudyError."""
        try:
            entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError as error:
            if name.isdecimal():  # as in containers
                return cls(uid=int(name), gid=int(name), home="/")
            raise StudyError(
                f"this machine has no user {name}",
                why="who reads the records, and who has the network, are users of their own",
                fix=f"make it (useradd --system --no-create-home {name}), or name another",
            ) from error
        return cls(uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def whoever_runs_this() -> dict[str, str]:
    """The ``user`` that this process runs as, and whose ``login`` it comes from where the system knows.

    The login is the kernel's (audit(7)), which outlasts sudo and cannot be set by others than root; else sudo's word,
    if root runs this.
    """
    uid = os.geteuid()
    known = _name(int(_LOGIN.read_text())) if _LOGIN.exists() else None
    login = known or (os.environ.get("SUDO_USER") if uid == 0 else None)
    return {"user": _name(uid) or str(uid), **({"login": login} if login else {})}


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):  # as of a login that nobody has
        return None


def become(user: User) -> None:
    """Be ``user`` from here on, in no other group, and never more again, as root alone can. Raises OSError."""
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # else a setuid program would give more again


def keep_memory_private() -> None:
    """From here on no dump of this process's memory is written, and its own user's other processes cannot read it.

    Each program that holds keys or records begins with this, since how it was started may have said nothing of dumps.
    What it starts writes no dump either, and may say for itself who reads it (prctl(2), PR_SET_DUMPABLE).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def leave_networks() -> None:
    """Have no network from here on but a loopback of its own, if this process may decide that; ``networks`` tells."""
    if LIBC.unshare(_CLONE_NEWNET) == 0:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            ioctl(opened, _SET_INTERFACE_FLAGS, _LOOPBACK_UP)


def networks() -> list[str]:
    """The interfaces by which this process could reach another machine: those that a route names."""
    interfaces = {line.split()[0] for line in _IPV4.read_text().splitlines()[1:]}
    if _IPV6.exists():  # its lines name the interface last
        interfaces |= {line.split()[-1] for line in _IPV6.read_text().splitlines()}
    return sorted(interfaces - {"lo"})
