"""The gate before a real SuperLink: nodes with an enrolled key come in, and nobody and nothing else."""

import asyncio
import itertools
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from support.network.loopback import Loopback, free_ports, until
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.protocol.pieces import PIECE_BYTES
from grandrounds.common.system.processes import environment
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY, make_certificates
from grandrounds.deploy.enrolment.node_keys import make_node_key, node_proof, public_pem
from grandrounds.deploy.server_ops import gate as gates
from grandrounds.deploy.server_ops.gate import largest_object, make_gate
from grandrounds.server.run.server_folder import EnrolledSite, ServerFolder

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
    # Under this a node could name itself, and whom it speaks for was not looked at.
    ("POST", "/v1/fleet/register-node"),
    ("POST", "/v1/fleet/push-messages%3Fx"),
    ("POST", "/v1/fleet/push-messages%23x"),
    ("POST", "/v1/fleet/push-messages%0a"),
    ("POST", "/v1/fleet/push-messages/"),
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


SMALL = 1 << 18


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node's key, and its public half (PEM)."""
    folder = tmp_path_factory.mktemp("node")
    make_node_key(folder / "node.key", folder / "node.pub")
    return folder / "node.key", public_pem((folder / "node.pub").read_text())


@pytest.fixture
def proof(node):
    """What a call needs to be read."""
    return node_proof(node[0], now=datetime.now(UTC))[1]


def gate_to(superlink, folder, largest_object=lambda key: SMALL):
    return TestClient(make_gate(superlink, folder / CA_CERTIFICATE, largest_object))


def test_a_node_that_asks_for_messages_is_answered_once_there_is_one(tmp_path, proof):
    with superlink_that_says(tmp_path, [b"", b"", b"message", b"later"]) as (superlink, asked):
        said = gate_to(superlink, tmp_path).post("/v1/fleet/pull-messages", content=b"x", headers=proof)
    assert said.content == b"message"
    assert asked == ["/v1/fleet/pull-messages"] * 3


def answer(*, author=7, caller=7, messages=1, trees=1, tree="ab" * 32, answers="cd" * 32, parts=2):
    """What a node says that brings an answer."""
    of = Metadata(src_node_id=author, message_id="ab" * 32, reply_to_message_id=answers)
    children = [ObjectTree(object_id=f"{number:064x}") for number in range(parts)]
    return PushMessagesRequest(
        node=Node(node_id=caller),
        messages_list=[Message(metadata=of)] * messages,
        message_object_trees=[ObjectTree(object_id=tree, children=children)] * trees,
    ).SerializeToString()


@pytest.mark.parametrize(("call", "said"), [("push-messages", answer()), ("send-node-heartbeat", b"x")])
def test_no_other_call_is_asked_twice(tmp_path, proof, call, said):
    with superlink_that_says(tmp_path, [b"", b"message"]) as (superlink, asked):
        got = gate_to(superlink, tmp_path).post(f"/v1/fleet/{call}", content=said, headers=proof)
    assert (got.content, asked) == (b"", [f"/v1/fleet/{call}"])


FOREIGN = {
    "in another's name": answer(author=8),
    "in its own name first": answer(messages=2),
    "of nothing": answer(messages=0),
    "to no message": answer(answers=""),
    "by another object's name": answer(tree="ef" * 32),
    "of many parts": answer(parts=16),
    "of two trees": answer(trees=2),
    "in other words": b"\xff",
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_an_answer_that_is_not_one_node_s_own_is_passed_to_nobody(tmp_path, proof, foreign):
    with superlink_that_says(tmp_path, [b""]) as (superlink, asked):
        got = gate_to(superlink, tmp_path).post("/v1/fleet/push-messages", content=FOREIGN[foreign], headers=proof)
    assert (got.status_code, asked) == (403, [])


@pytest.mark.parametrize("path", [path for method, path in ELSEWHERE if method == "POST" and ".." not in path])
def test_under_no_other_name_is_anything_passed_on(tmp_path, proof, path):
    with superlink_that_says(tmp_path, [b""]) as (superlink, asked):
        got = gate_to(superlink, tmp_path).post(path, content=answer(author=8), headers=proof, follow_redirects=False)
    assert (got.status_code >= 300, asked) == (True, [])


LATER = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
UNPROVEN = {
    "nothing": lambda proof: {},
    "a key alone": lambda proof: {"flwr-public-key": proof["flwr-public-key"]},
    "another time": lambda proof: proof | {"flwr-timestamp": LATER},
    "another signature": lambda proof: proof | {"flwr-signature": proof["flwr-signature"][::-1]},
    "a long time": lambda proof: proof | {"flwr-timestamp": "2" * 2000},
}


@pytest.mark.parametrize("shown", UNPROVEN)
def test_who_proves_no_key_is_not_read_and_is_passed_to_nobody(tmp_path, proof, shown):
    with superlink_that_says(tmp_path, [b""]) as (superlink, asked):
        headers = UNPROVEN[shown](proof)
        got = gate_to(superlink, tmp_path).post("/v1/fleet/push-object", content=b"x", headers=headers)
    assert (got.status_code, got.headers["connection"], asked) == (401, "close", [])


def test_of_a_node_no_more_is_read_than_a_study_s_messages_have(tmp_path, node, proof):
    largest = {node[1]: 2 * SMALL}
    with superlink_that_says(tmp_path, [b""] * 2) as (superlink, asked):
        gate = gate_to(superlink, tmp_path, lambda key: largest[key])
        sizes = {("push-object", 2 * SMALL): 200, ("push-object", 2 * SMALL + 1): 413, ("get-run", SMALL + 1): 413}
        for (call, size), status in sizes.items():
            assert gate.post(f"/v1/fleet/{call}", content=bytes(size), headers=proof).status_code == status
    assert asked == ["/v1/fleet/push-object"]


def test_a_body_that_comes_byte_by_byte_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(gates, "_BODY_S", 0.2)
    monkeypatch.setattr(gates, "_LEAST_RATE", 1e9)
    parts = itertools.count()

    async def receive():
        assert next(parts) < 1000, "its next part came in time, each time"
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(TimeoutError):
        asyncio.run(gates._body(Request({"type": "http", "method": "POST", "headers": []}, receive), SMALL))


def test_a_piece_of_an_update_is_taken_of_who_is_enrolled_and_little_of_who_is_not(tmp_path, node):
    folder, study = ServerFolder(tmp_path), small_study()
    key = node[0].with_suffix(".pub").read_text()
    assert largest_object(folder, node[1]) == SMALL, "before anybody is"
    folder.save_sites({"site-1": EnrolledSite(public_key="00" * 32, node_key=key)})
    assert largest_object(folder, node[1]) == SMALL, "before there is a study"
    keys = {site.name: Identity.generate() for site in study.sites}
    manifest = small_manifest(study, keys, Identity.generate(), dimension=10**6)
    folder.study.save_manifest(manifest)
    assert PIECE_BYTES < largest_object(folder, node[1]) < PIECE_BYTES + (1 << 16)
    make_node_key(tmp_path / "other.key", tmp_path / "other.pub")
    assert largest_object(folder, public_pem((tmp_path / "other.pub").read_text())) == SMALL


def test_while_the_superlink_is_away_a_node_is_told_to_try_again(tmp_path, proof):
    make_certificates(tmp_path, "localhost")
    gate = gate_to(f"localhost:{free_ports(1)[0]}", tmp_path)
    assert gate.post("/v1/fleet/pull-messages", content=b"", headers=proof).status_code == 503
