"""The server's folder: one process at a time, keys for nobody else, and settings that say what is wrong."""

import subprocess
import sys

import pytest

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StorageError, StudyError
from grandrounds.server.run.server_folder import KEY, SETTINGS, EnrolledSite, ServerFolder

HOLDER = """
import sys
from pathlib import Path
from grandrounds.server.run.server_folder import ServerFolder
with ServerFolder(Path(sys.argv[1])).running():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / SETTINGS).write_text('host = "server.example.org"\nevaluation = "evaluation.jsonl"\n')
    return ServerFolder(tmp_path)


def test_two_processes_never_run_one_study_and_a_killed_one_leaves_it_free(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert folder.is_running
    with pytest.raises(StudyError, match="runs already"), folder.running():
        pass
    holder.kill()
    holder.communicate()
    assert not folder.is_running
    with folder.running():
        assert folder.is_running


def test_who_asks_whether_a_study_runs_does_not_hold_it(folder):
    with folder.running():
        pass
    assert not folder.is_running
    assert not folder.is_running


def test_paths_of_the_settings_start_from_the_folder(folder):
    settings = folder.settings()
    assert settings.evaluation == folder.path / "evaluation.jsonl"
    assert settings.model is None
    assert settings.address == "server.example.org:9092"


def test_an_ipv6_address_is_written_as_addresses_with_a_port_are(folder):
    (folder.path / SETTINGS).write_text('host = "2001:db8::1"\nevaluation = "e"\n')
    assert folder.settings().address == "[2001:db8::1]:9092"


@pytest.mark.parametrize(
    "line", ['hots = "x"', "port = 0", 'host = "a b"', 'port = "9092"', 'evaluation_source = "a\\nb"']
)
def test_a_setting_that_is_wrong_is_named(folder, line):
    (folder.path / SETTINGS).write_text(f'{line}\nevaluation = "e"\n')
    with pytest.raises(StudyError, match=line.split()[0]):
        folder.settings()


def test_the_sites_are_kept_with_all_digits_of_their_nodes(folder):
    assert folder.sites() == {}
    site = EnrolledSite(public_key="11" * 32, node_key="ecdsa", node_id=2**64 - 1)
    folder.save_sites({"north": site})
    assert folder.sites() == {"north": site}


@pytest.mark.parametrize("content", [b"", b"{}", b'{"sites": {"north": {}}}', b"\xff"])
def test_a_damaged_list_of_sites_is_refused(folder, content):
    (folder.path / "sites.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"sites\.json"):
        folder.sites()


def test_the_server_s_key_is_read_only_where_no_other_user_can(folder):
    identity, path = Identity.generate(), folder.path / KEY
    path.write_text(identity.secret.hex())
    path.chmod(0o640)
    with pytest.raises(StorageError, match="open to other users"):
        folder.identity()
    path.chmod(0o600)
    assert folder.identity().public_key == identity.public_key


@pytest.mark.parametrize("content", ["", "zz", "11" * 31])
def test_a_damaged_key_is_refused(folder, content):
    (folder.path / KEY).write_text(content)
    (folder.path / KEY).chmod(0o600)
    with pytest.raises(StorageError, match="damaged"):
        folder.identity()
