"""The gate before a real SuperLink: nodes with an enrolled key come in, and nobody and nothing else."""

import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from support.network.loopback import Loopback, free_ports, until

from grandrounds.common.system.processes import environment
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY, make_certificates
from grandrounds.deploy.enrolment.node_keys import make_node_key
from grandrounds.deploy.server_ops.gate import make_gate

PROGRAMS = Path(sys.executable).parent
# What the SuperLink has beside the nodes' interface, on the same port.
INSIDE = ("/v1/control/list-nodes", "/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task")
ELSEWHERE = [
    *(("POST", path) for path in INSIDE),
    ("POST", "/v1/fleet/../control/list-nodes"),
    ("POST", "/v1/fleet/%2e%2e/control/list-nodes"),
    ("POST", "/v1/fleet/..%2fcontrol%2flist-nodes"),
    ("POST", "/v1/fleet//v1/control/list-nodes"),
    ("POST", "/v1/fleet/"),
    ("GET", "/health"),
    ("GET", "/docs"),
    ("GET", "/"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("gate")) as federation:
        yield federation


def ask(federation, method, path, *, inside=False):
    """The status of an answer to exactly this path: a client would tidy it up before it is sent."""
    server = federation.server
    address = server.settings().superlink if inside else federation.address
    authority = (server.inside if inside else server.certificates) / CA_CERTIFICATE
    with httpx.Client(verify=str(authority), trust_env=False) as client:
        url = httpx.URL(f"https://{address}").copy_with(raw_path=path.encode())
        return client.request(method, url, headers={"content-type": "application/protobuf"}).status_code


def supernode(federation, key, *, authority, address=None):
    """What a SuperNode says that was not let in, which ends it."""
    command = [
        PROGRAMS / "flower-supernode",
        *("--superlink", address or federation.address, "--root-certificates", authority),
        *("--auth-supernode-private-key", key, "--port", str(free_ports(1)[0]), "--isolation", "process"),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(("method", "path"), ELSEWHERE)
def test_nothing_but_the_nodes_interface_is_reached(federation, method, path):
    assert ask(federation, method, path) in (404, 405)


@pytest.mark.parametrize("path", INSIDE)
def test_what_the_gate_keeps_back_is_there_behind_it(federation, path):
    assert ask(federation, "POST", path, inside=True) not in (404, 405)


def test_the_nodes_interface_is_reached_and_wants_a_node_s_key(federation):
    assert ask(federation, "POST", "/v1/fleet/pull-messages") in (400, 401)
    assert ask(federation, "GET", "/v1/fleet/pull-messages") == 405


def test_a_node_whose_key_is_not_enrolled_is_refused(federation, tmp_path):
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    said = supernode(federation, tmp_path / "node.key", authority=federation.server.certificates / CA_CERTIFICATE)
    assert "Failed to activate SuperNode" in said


def test_a_node_that_trusts_another_authority_speaks_to_nobody(federation, tmp_path):
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    make_certificates(tmp_path, "localhost")
    said = supernode(federation, tmp_path / "node.key", authority=tmp_path / CA_CERTIFICATE)
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_an_executor_without_the_secret_gets_no_task(federation):
    superlink = federation.server.settings().superlink
    command = [
        PROGRAMS / "flower-superexec",
        *("--runtime-api-address", superlink, "--root-certificates", federation.server.inside / CA_CERTIFICATE),
    ]
    # With the secret it would serve without end.
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert "terminated" in done.stdout + done.stderr


def test_the_superlink_listens_on_loopback_alone(federation):
    port = f"{federation.server.settings().superlink_port:04X}"
    listening = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    addresses = {fields[1] for fields in listening if fields[3] == "0A" and fields[1].endswith(f":{port}")}
    assert addresses == {f"0100007F:{port}"}


@contextmanager
def superlink_that_says(folder, replies):
    """The address of one that gives these replies to whatever it is asked, each once; what it was asked."""
    asked, port = [], free_ports(1)[0]

    async def reply(request):
        asked.append(request.url.path)
        return Response(replies.pop(0))

    make_certificates(folder, "localhost")
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[Route("/{path:path}", reply, methods=["POST"])]),
            port=port,
            ssl_certfile=str(folder / CERTIFICATE),
            ssl_keyfile=str(folder / CERTIFICATE_KEY),
            log_level="error",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "it listens")
    try:
        yield f"localhost:{port}", asked
    finally:
        server.should_exit = True
        thread.join()


def test_a_node_that_asks_for_messages_is_answered_once_there_is_one(tmp_path):
    with superlink_that_says(tmp_path, [b"", b"", b"message", b"later"]) as (superlink, asked):
        said = TestClient(make_gate(superlink, tmp_path / CA_CERTIFICATE)).post("/v1/fleet/pull-messages", content=b"x")
    assert said.content == b"message"
    assert asked == ["/v1/fleet/pull-messages"] * 3


@pytest.mark.parametrize("call", ["push-messages", "send-node-heartbeat"])
def test_no_other_call_is_asked_twice(tmp_path, call):
    with superlink_that_says(tmp_path, [b"", b"message"]) as (superlink, asked):
        said = TestClient(make_gate(superlink, tmp_path / CA_CERTIFICATE)).post(f"/v1/fleet/{call}", content=b"x")
    assert (said.content, len(asked)) == (b"", 1)


def test_while_the_superlink_is_away_a_node_is_told_to_try_again(tmp_path):
    make_certificates(tmp_path, "localhost")
    gate = TestClient(make_gate(f"localhost:{free_ports(1)[0]}", tmp_path / CA_CERTIFICATE))
    assert gate.post("/v1/fleet/pull-messages", content=b"").status_code == 503
