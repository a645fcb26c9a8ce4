"""What a site is told of its way to the server: each step that passes, and of the first that fails what causes it."""

import os
import re
import shutil
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import torch
from support.network.certificates import reissue
from support.network.loopback import Loopback, free_ports, until
from support.network.proxy_server import ProxyServer
from support.network.tls_server import TlsServer

from grandrounds.client.node.folder import NodeSettings
from grandrounds.client.site.folder import SETTINGS, SiteFolder
from grandrounds.common.errors import ModelError, StorageError, StudyError
from grandrounds.common.system.files import write_atomically
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, make_certificates
from grandrounds.deploy.enrolment.node_keys import make_node_key
from grandrounds.deploy.site_ops import connection

NAME = "gate.example.org"  # which no name server knows
NOW = datetime.now(UTC)
STUDY = "ab" * 32


def check_connection(folder):
    return connection.check_connection(folder, folder.of(STUDY))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, NAME)
    return folder


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site(tmp_path, made):
    """Makes a site's folder, as far as a node needs it, whose server is at an address."""

    def at(address, *, certificates=made, key=None):
        folder = SiteFolder(tmp_path / "site")
        folder.state.mkdir(parents=True)
        study = folder.of(STUDY)
        if key is None:
            make_node_key(study.node.key, tmp_path / "node.pub")
        else:
            write_atomically(study.node.key, key)
        settings = NodeSettings(
            address=address,
            app_sha256="0" * 64,
            socket=Path("run/worker.sock"),
            runtime_port=free_ports(1)[0],
            timeout_s=60.0,
            largest_bytes=1 << 20,
            package_version=__version__,
            package_sha256=running_sha256(),
        )
        write_atomically(folder.path / SETTINGS, b'name = "north"\ndata = "notes.jsonl"\nmodel = "model"\n')
        study.node.save(settings, certificates=(certificates / CA_CERTIFICATE).read_bytes())
        return folder

    return at


def fault(folder):
    """What is said of the first step that fails."""
    with pytest.raises(StudyError) as raised:
        list(check_connection(folder))
    return raised.value.diagnostics()


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("loopback"), host=NAME) as federation:
        yield federation


@pytest.fixture(scope="module")
def enrolled(federation, tmp_path_factory):
    """The key of a node that the server knows, and the node's id."""
    folder = tmp_path_factory.mktemp("enrolled")
    make_node_key(folder / "node.key", folder / "node.pub")
    return (folder / "node.key").read_bytes(), federation.flower.register("north", (folder / "node.pub").read_text())


@pytest.fixture
def known(federation, enrolled, site):
    """A site where nothing is wrong."""
    return site(federation.address, certificates=federation.server.certificates, key=enrolled[0])


def status(federation, node_id):
    return next(node.status for node in federation.flower.nodes() if node.node_id == node_id)


def test_the_whole_way_of_an_enrolled_site_is_found_good_without_being_a_node_that_comes(federation, enrolled, known):
    lines = "\n".join(check_connection(known))
    assert "the server answers, and has enrolled this site's node" in lines
    assert re.search(r"this machine's clock (agrees with|is \d s \w+( of)?) the server's", lines)
    assert re.search(r"holds until \w+ +\d+ .* GMT", lines)
    assert "of loopback is free for the node" in lines
    assert "the model computes on processors" in lines
    assert not list(known.state.iterdir())
    assert status(federation, enrolled[1]) == "registered"


def test_a_site_that_nobody_enrolled_is_told_so(federation, site):
    said = fault(site(federation.address, certificates=federation.server.certificates))
    assert "does not know this site's node" in said


def test_a_port_that_something_else_has_is_told(known):
    with socket.create_server(("127.0.0.1", known.of(STUDY).node.settings().runtime_port)):
        taken = f"is not free: process {os.getpid()} ("
        assert any(taken in line for line in check_connection(known))


def test_a_node_comes_through_a_proxy_which_is_asked_for_the_gate_alone(federation, tmp_path, monkeypatch):
    gate = int(federation.address.rpartition(":")[2])
    with ProxyServer(gate) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        site = federation.site("through", tmp_path / "none.sock", app_sha256="0" * 64, address=f"{NAME}:{gate}")
        node_id = federation.enroll(site)
        federation.start(site)
        until(lambda: status(federation, node_id) == "online", "the node is there")
        assert set(proxy.hosts) == {f"{NAME}:{gate}"}


def test_the_way_leads_through_the_proxy_of_the_environment_whose_password_is_not_shown(federation, site, monkeypatch):
    gate = int(federation.address.rpartition(":")[2])
    folder = site(f"{NAME}:{gate}", certificates=federation.server.certificates)
    with ProxyServer(gate) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//somebody:secret@"))
        lines = list(zip(range(3), check_connection(folder), strict=False))
        assert f"the proxy for it is {proxy.url.removeprefix('http://')}, which looks up {NAME}" in str(lines)
        assert proxy.credentials == {"Proxy-Authorization: Basic c29tZWJvZHk6c2VjcmV0"}
        assert proxy.hosts == [f"{NAME}:{gate}"]
    assert "secret" not in str(lines)


@pytest.mark.parametrize(("status", "cause"), [(407, "NAME:PASSWORD"), (403, "CONNECT"), (502, "can reach that host")])
def test_a_proxy_that_opens_no_way_is_named_with_the_cause(site, monkeypatch, status, cause):
    folder = site(f"{NAME}:9092")
    with ProxyServer(0, status=status) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//somebody:secret@"))
        said = fault(folder)
    assert f"{proxy.url.removeprefix('http://')} opens no way to the server (HTTP {status})" in said
    assert cause in said
    assert "secret" not in said


def test_a_proxy_that_opens_tls_is_found_out_by_its_authority(site, tmp_path, monkeypatch):
    make_certificates(tmp_path / "inspection", NAME)
    with TlsServer(tmp_path / "inspection") as inspection, ProxyServer(inspection.port) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "inspection" / CA_CERTIFICATE))
        said = fault(site(f"{NAME}:9092"))
    assert "is of another authority than the study's" in said
    assert f"signed by CN=Grand Rounds CA of {NAME}" in said
    assert "opens TLS to look inside" in said
    assert "SSL_CERT_FILE is of no use" in said


def test_a_proxy_is_left_out_for_the_hosts_of_no_proxy(site, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "example.org")
    steps = check_connection(site(f"{NAME}:9092"))
    assert [next(steps), next(steps)][1] == "no proxy is set for it"
    with pytest.raises(StudyError, match=f"{NAME} cannot be looked up"):
        next(steps)


def test_a_proxy_of_another_kind_is_refused(site, monkeypatch):
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:1")
    assert "no proxy that a node can use" in fault(site(f"{NAME}:9092"))


def test_a_port_where_nobody_listens_is_named(site):
    address = f"localhost:{free_ports(1)[0]}"
    assert f"{address} refuses the connection" in fault(site(address))


def test_who_cuts_the_connection_is_told_from_who_speaks_no_tls(site):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        cutting = threading.Thread(target=lambda: listening.accept()[0].close())
        cutting.start()
        said = fault(site(f"localhost:{listening.getsockname()[1]}"))
        cutting.join()
    assert "breaks the connection off" in said


@pytest.mark.parametrize(
    ("begins", "ends", "what"), [(-9, -1, "is out of its time"), (1, 9, "is not yet in force")], ids=["ended", "early"]
)
def test_a_certificate_out_of_its_time_is_told_with_its_dates(site, made, tmp_path, begins, ends, what):
    shutil.copytree(made, tmp_path / "tls")
    reissue(tmp_path / "tls", begins=NOW + timedelta(days=begins), ends=NOW + timedelta(days=ends))
    with TlsServer(tmp_path / "tls") as server:
        said = fault(site(f"localhost:{server.port}"))
    assert what in said
    assert f"to {NOW + timedelta(days=ends):%d %B %Y}" in said


def test_a_certificate_of_another_host_is_told_with_that_host(site, made, monkeypatch):
    with TlsServer(made) as server, ProxyServer(server.port) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        said = fault(site("other.example.org:9092"))
    assert "is another host's" in said
    assert f"that of CN={NAME}" in said


def test_plain_http_is_told_from_tls(site):
    with TlsServer(None) as server:
        assert "answers, and not in TLS" in fault(site(f"localhost:{server.port}"))


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (503, "its SuperLink is not"),
        (502, "a reverse proxy answers"),
        (401, "signature for none"),
        (404, "something else than the server's gate"),
        (200, "something else than the server's gate"),
        (400, "something else than the server's gate"),
    ],
)
def test_an_answer_that_is_not_the_gate_s_is_told_from_it(site, made, status, what):
    with TlsServer(made, status=status) as server:
        said = fault(site(f"localhost:{server.port}"))
        assert what in said
        assert f"HTTP {status}" in said
        assert server.paths == ["/v1/fleet/activate-node"]


@pytest.mark.parametrize(("ahead_s", "told"), [(8, r"\d+ s ahead of"), (-400, r"6 min \d+ s behind")])
def test_a_clock_that_no_call_is_taken_of_is_told(site, made, ahead_s, told):
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead_s), usegmt=True)
    with TlsServer(made, status=401, headers={"date": date}) as server:
        said = fault(site(f"localhost:{server.port}"))
    assert re.search(told, said)
    assert "NTP" in said


def test_a_state_that_cannot_be_written_is_told(known):
    known.state.rmdir()
    known.state.write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        list(check_connection(known))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_cannot_be_used_is_told(known):
    settings = known.path / SETTINGS
    settings.write_text(settings.read_text() + 'devices = "cuda"\n')
    with pytest.raises(ModelError, match=r"cannot use a GPU|no GPU can be used"):
        list(check_connection(known))
