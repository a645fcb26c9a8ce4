"""What Flower's side of a site has: all of it in one folder, beside the worker's socket."""

from pathlib import Path

import pytest

from grandrounds.client.node.folder import NodeFolder, NodeSettings
from grandrounds.common.errors import StudyError
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__

SETTINGS = NodeSettings(
    address="server.example.org:8443",
    app_sha256="11" * 32,
    socket=Path("run/worker.sock"),
    runtime_port=9094,
    timeout_s=600.0,
    largest_bytes=1 << 20,
    package_version=__version__,
    package_sha256=running_sha256(),
)


@pytest.fixture
def folder(tmp_path):
    return NodeFolder(tmp_path / "site" / "node")


def test_what_was_saved_is_what_the_node_runs_with(folder):
    assert folder.runtime_port is None
    with pytest.raises(StudyError, match=r"there is no .*node\.json"):
        folder.supernode()
    folder.save(SETTINGS, certificates=b"authority")
    supernode = folder.supernode()
    assert (supernode.address, supernode.app_sha256, supernode.timeout_s) == (
        SETTINGS.address,
        SETTINGS.app_sha256,
        600.0,
    )
    assert supernode.socket == folder.path.parent / "run" / "worker.sock"
    assert folder.certificates.read_bytes() == b"authority"
    assert {supernode.node_key.parent, supernode.secret.parent, supernode.certificates.parent} == {folder.path}
    assert supernode.folder == folder.written, "what it writes is kept apart from what it reads"
    assert folder.runtime_port == supernode.runtime_port == SETTINGS.runtime_port


def test_a_socket_elsewhere_stays_there(folder):
    folder.save(SETTINGS.model_copy(update={"socket": Path("/run/site/worker.sock")}), certificates=b"")
    assert folder.settings().socket == Path("/run/site/worker.sock")


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 100_000])
def test_damaged_settings_are_a_diagnosis(folder, text):
    folder.save(SETTINGS, certificates=b"")
    (folder.path / "node.json").write_text(text)
    with pytest.raises(StudyError, match=r"node\.json cannot be read"):
        folder.settings()


def test_another_program_than_the_study_pinned_carries_nothing(folder):
    folder.save(SETTINGS.model_copy(update={"package_sha256": "22" * 32}), certificates=b"")
    with pytest.raises(StudyError, match="the study runs grandrounds"):
        folder.supernode()
