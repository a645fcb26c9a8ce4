"""What a process may do: another user for good, no network, and memory that nobody reads."""

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.process.other_users import AS_ROOT, done_as, user

from grandrounds.common.errors import StudyError
from grandrounds.common.system.privileges import User, leave_networks, networks

NOBODY = user(65534)


def test_a_user_is_known_by_its_name_or_its_id_which_needs_no_name():
    root = pwd.getpwuid(0)
    assert User.named(root.pw_name) == User.named("0") == User(uid=0, gid=0, home=root.pw_dir)
    assert User.named("4123456789") == User(uid=4123456789, gid=4123456789, home="/")
    with pytest.raises(StudyError, match="no user nobody-of-this-name"):
        User.named("nobody-of-this-name")


@AS_ROOT
def test_who_became_another_user_is_in_no_other_group_and_cannot_go_back():
    def act():
        said = [os.getresuid(), os.getresgid(), os.getgroups()]
        os.setuid(0)
        return said

    assert done_as(NOBODY, lambda: [os.getresuid(), os.getresgid(), os.getgroups()]) == [[65534] * 3, [65534] * 3, []]
    assert done_as(NOBODY, act) == "PermissionError"


@AS_ROOT
def test_who_left_the_networks_has_none_but_a_loopback_of_its_own():
    child = os.fork()
    if not child:
        here = Path("/proc/self/ns/net").readlink()
        leave_networks()
        is_apart = Path("/proc/self/ns/net").readlink() != here
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            os._exit(bool(networks()) or not is_apart)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_networks_are_those_that_a_route_names(tmp_path, monkeypatch):
    ipv4, ipv6 = tmp_path / "route", tmp_path / "ipv6_route"
    monkeypatch.setattr("grandrounds.common.system.privileges._IPV4", ipv4)
    monkeypatch.setattr("grandrounds.common.system.privileges._IPV6", ipv6)
    ipv4.write_text("Iface\tDestination\tGateway\n")
    assert networks() == [], "of a machine without IPv6"
    ipv6.write_text("00 00 00 lo\nfe 40 00 eth1\n")
    ipv4.write_text("Iface\tDestination\tGateway\neth0\t00000000\t010200C0\n")
    assert networks() == ["eth0", "eth1"]


# Each begins, fails for want of what it needs, and then says what it let others do.
BEGIN = """
import contextlib, ctypes, resource, sys
from types import SimpleNamespace
with contextlib.suppress(BaseException):
    {begin}
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""
PROGRAMS = {
    "the command line": "sys.argv = ['grandrounds']; from grandrounds.deploy.cli.main import main; main()",
    "a site's relay": "from grandrounds.client.node.relay import main; main('', '/nowhere', '', '', '1', '', '1')",
    "the gate": "from grandrounds.deploy.server_ops.gate import main; main('/nowhere')",
    "one of Flower's": "sys.argv = ['', 'flower-supernode', '--help']; "
    "from grandrounds.common.system.flower_program import main; main()",
    "a study's process": "from grandrounds.deploy.flower.server_app import main; "
    "main(None, SimpleNamespace(run_config={}))",
}


@pytest.mark.parametrize("begin", PROGRAMS.values(), ids=list(PROGRAMS))
def test_no_program_that_holds_keys_or_records_can_be_dumped_however_it_was_started(begin):
    done = subprocess.run([sys.executable, "-c", BEGIN.format(begin=begin)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 0 0"], done.stderr
