"""What real processes refuse: other nodes' messages, what is repeated or altered, and servers that cannot be known."""

import json
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from support.network.certificates import reissue
from support.network.loopback import Loopback, an_app, flwr, free_ports, until
from support.network.raw_node import RawNode, refused
from support.network.socket_recorder import SocketRecorder, flipped
from support.network.tls_server import TlsServer
from support.process.resident_process import SITE, ResidentProcess, ones, refusal
from support.study.federation import Federation, small_study

from grandrounds.client.worker_socket import HEAD, connect
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.system.processes import environment
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, make_certificates
from grandrounds.deploy.enrolment.node_keys import make_node_key
from grandrounds.deploy.flower.archive import app_folder

OTHER = "site-1"
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def federation():
    return Federation(study=small_study(training={"max_attempts": 9}), dimension=7, release=ones)


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("loopback")) as loopback:
        yield loopback


@pytest.fixture(scope="module")
def recorder(loopback, federation):
    """Between the relays and the one worker."""
    with ResidentProcess(loopback.root / "worker", federation) as worker:
        worker.start()
        with SocketRecorder(loopback.root / "recorder.sock", worker.socket) as recorder:
            yield recorder


@pytest.fixture(scope="module")
def app(loopback):
    return an_app(loopback.root / "app")


@pytest.fixture(scope="module")
def site(loopback, recorder, app):
    site = loopback.site(SITE, recorder.path, app_sha256=app[1])
    loopback.enroll(site)
    loopback.start(site)
    return site


def raw_node(loopback, recorder, name):
    site = loopback.site(name, recorder.path, app_sha256="0" * 64)
    return RawNode(site, loopback.enroll(site))


@pytest.fixture(scope="module")
def stranger(loopback, recorder):
    """The node of a site that is in no study."""
    return raw_node(loopback, recorder, "stranger")


@pytest.fixture(scope="module")
def other(loopback, recorder):
    """The node of another site of the study."""
    return raw_node(loopback, recorder, OTHER)


@pytest.fixture(scope="module")
def run(loopback, site, app):
    with loopback.run(app[0]) as run:
        run.ask_until_there(site, b"are you there?")
        yield run


@contextmanager
def asked(run, node, message):
    """What the node is asked, and the answers that come to the server for it, one at the end."""
    answers = []
    asking = threading.Thread(target=lambda: answers.append(run.ask(node, message)))
    asking.start()
    yield until(node.pull, f"{node.name} has a message"), answers
    asking.join()


def begun(federation, serial):
    attempt = federation.attempt(serial)
    return attempt, attempt.messages()[SITE]


def test_a_node_is_not_given_another_s_messages(stranger, other):
    assert refused(stranger.pull, of=other) == 401


def test_a_node_cannot_answer_for_another(run, stranger, other):
    with asked(run, other, b"for the other") as (message, answers):
        assert refused(stranger.push, b"a stranger's", message, caller=other, author=other) == 401
        assert refused(stranger.push, b"a stranger's", message, author=other) == 403
        assert stranger.push(b"a stranger's", message) == set(), "Flower takes nothing of it"
        assert not answers
        other.push(b"the other's", message)
    assert answers == [b"the other's"]


def test_a_node_that_brings_another_site_s_answer_has_brought_none(run, other, recorder, federation):
    attempt, begin = begun(federation, 1)
    with asked(run, other, begin) as (message, answers):
        other.push(connect(recorder.path, timeout_s=60)(begin), message)
    attempt.receive(OTHER, answers[0])
    assert OTHER in attempt.dropouts
    attempt.receive(SITE, answers[0])
    assert attempt.answered == {SITE}


def test_a_begin_is_answered_once_and_an_answer_counts_in_its_own_attempt(run, site, federation):
    attempt, begin = begun(federation, 2)
    answer = run.ask(site, begin)
    assert refusal(run.ask(site, begin)) == "serial"
    later, _ = begun(federation, 3)
    later.receive(SITE, answer)
    assert SITE in later.dropouts
    attempt.receive(SITE, answer)
    assert attempt.answered == {SITE}


def test_a_site_gives_its_shares_once(run, site, federation):
    attempt, begin = begun(federation, 4)
    answer = run.ask(site, begin)
    for name, message in attempt.messages().items():
        attempt.receive(name, answer if name == SITE else federation.workers[name].handle(message))
    attempt.advance()
    adverts = attempt.messages()[SITE]
    assert Envelope.parse(run.ask(site, adverts)).exchange == "shares"
    assert refusal(run.ask(site, adverts)) == "protocol"


def test_one_altered_bit_on_the_way_to_a_worker_is_refused_before_anything_comes_of_it(run, site, recorder, federation):
    _, begin = begun(federation, 5)
    recorder.alter_request = lambda request: flipped(request, at=-1)
    try:
        assert refusal(run.ask(site, begin)) == "protocol"
    finally:
        recorder.alter_request = bytes
    assert Envelope.parse(run.ask(site, begin)).exchange == "advert"


def test_one_altered_bit_on_the_way_from_a_worker_loses_its_answer(run, site, recorder, federation):
    attempt, begin = begun(federation, 6)
    recorder.alter_answer = lambda answer: flipped(answer, at=len(answer) // 2)
    try:
        attempt.receive(SITE, run.ask(site, begin))
    finally:
        recorder.alter_answer = bytes
    assert SITE in attempt.dropouts
    _, answer = recorder.conversations[-1]
    honest, _ = begun(federation, 6)
    honest.receive(SITE, flipped(answer, at=len(answer) // 2)[HEAD.size :])
    assert honest.answered == {SITE}, "it was good but for the bit"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What SuperNodes say of servers that cannot be known, and what those servers were asked; all at once."""
    folder, day = tmp_path_factory.mktemp("tls"), timedelta(days=1)
    for name in ("without TLS", "of another host", "ended"):
        make_certificates(folder / name, "localhost")
    reissue(folder / "of another host", host="elsewhere.example.org")
    reissue(folder / "ended", begins=NOW - 9 * day, ends=NOW - day)
    make_node_key(folder / "node.key", folder / "node.pub")
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(TlsServer(None if name == "without TLS" else folder / name))
            for name in ("without TLS", "of another host", "ended")
        }
        nodes = {
            name: supernode(folder / "node.key", f"localhost:{server.port}", folder / name / CA_CERTIFICATE)
            for name, server in servers.items()
        }
        said = {name: node.communicate(timeout=120)[0] for name, node in nodes.items()}
    return said, {name: server.paths for name, server in servers.items()}


def supernode(key, address, authority):
    command = [
        Path(sys.executable).with_name("flower-supernode"),
        *("--superlink", address, "--root-certificates", authority),
        *("--auth-supernode-private-key", key, "--port", str(free_ports(1)[0]), "--isolation", "process"),
    ]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("without TLS", "WRONG_VERSION_NUMBER"),
        ("of another host", "not valid for 'localhost'"),
        ("ended", "certificate has expired"),
    ],
)
def test_a_node_says_nothing_to_a_server_that_it_cannot_know(said, server, reason):
    words, asked = said
    assert reason in words[server]
    assert asked[server] == []


def test_who_speaks_without_tls_is_not_heard(loopback):
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{loopback.address}/v1/fleet/pull-messages", trust_env=False)


def test_a_second_run_of_a_study_ends_at_once_and_says_why_in_its_log(loopback, federation):
    server, home = loopback.server, {"FLWR_HOME": str(loopback.server.flower_home)}
    server.study.save_manifest(federation.manifest)
    with server.running():  # as the first run does
        config = f"server={json.dumps(str(server.path))}"
        log = flwr("run", app_folder(), "study", "--run-config", config, "--stream", **home)
    assert "the study runs already. Why it matters:" in log
    runs = json.loads(flwr("list", "study", "--format", "json", **home))["runs"]
    assert [run["status"] for run in runs].count("finished:failed") == 1
