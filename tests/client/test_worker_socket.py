"""The worker's socket from outside: framing that survives whatever lies between two ends, and one request over it."""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.client.worker_socket import HEAD, Kind, connect, health


@contextlib.contextmanager
def worker_says(path, pieces, *, then_waits=False):
    """A worker that reads one request and answers with ``pieces``, each sent by itself; the request it read."""
    path.unlink(missing_ok=True)
    requests: list[bytes] = []
    over = threading.Event()

    def run():
        peer, _ = listening.accept()
        with peer:
            _, size = HEAD.unpack(peer.recv(HEAD.size, socket.MSG_WAITALL))
            requests.append(peer.recv(size, socket.MSG_WAITALL) if size else b"")
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    peer.sendall(piece)
            if then_waits:
                over.wait()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield requests
        finally:
            over.set()
            thread.join()


def framed(kind, body):
    return HEAD.pack(kind, len(body)) + body


def cut(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "worker.sock"


@settings(max_examples=50, deadline=None)
@given(
    answer=st.binary(max_size=300), request=st.binary(max_size=300), places=st.lists(st.integers(0, 400), max_size=8)
)
def test_request_and_answer_arrive_whole_however_they_are_cut(path, answer, request, places):
    with worker_says(path, cut(framed(Kind.ENVELOPE, answer), places)) as requests:
        assert connect(path, timeout_s=30)(request) == answer
    assert requests == [request]


def test_an_answer_larger_than_any_buffer_arrives_whole(path):
    answer = bytes(range(256)) * 20_000
    with worker_says(path, [framed(Kind.ENVELOPE, answer)]):
        assert connect(path, timeout_s=30)(b"request") == answer


@settings(max_examples=30, deadline=None)
@given(kept=st.integers(0, HEAD.size + 49))
def test_an_answer_that_is_cut_short_is_none(path, kept):
    with worker_says(path, [framed(Kind.ENVELOPE, bytes(50))[:kept]]), pytest.raises(ConnectionError):
        connect(path, timeout_s=30)(b"request")


def test_an_answer_to_another_question_is_none(path):
    with worker_says(path, [framed(Kind.HEALTH, b"{}")]), pytest.raises(ConnectionError, match="something else"):
        connect(path, timeout_s=30)(b"request")


@pytest.mark.parametrize("pieces", [[], [framed(Kind.ENVELOPE, bytes(50))[:-1]]], ids=["nothing", "all but a byte"])
def test_a_worker_that_does_not_answer_is_waited_for_no_longer_than_agreed(path, pieces):
    with worker_says(path, pieces, then_waits=True), pytest.raises(TimeoutError):
        connect(path, timeout_s=0.2)(b"request")


def test_where_no_worker_comes_up_in_time_the_exchange_raises(tmp_path):
    with pytest.raises(TimeoutError, match="no worker"):
        connect(tmp_path / "worker.sock", timeout_s=0.3)(b"request")


def test_the_health_of_a_worker_that_is_not_up_is_known_at_once(tmp_path):
    with pytest.raises(ConnectionError, match="it is not up"):
        health(tmp_path / "worker.sock", timeout_s=600)


@pytest.mark.parametrize("left_behind", [False, True], ids=["no socket", "a dead worker's socket"])
def test_a_worker_that_still_loads_is_waited_for(tmp_path, left_behind):
    path, answers = tmp_path / "worker.sock", []
    if left_behind:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    asking = threading.Thread(target=lambda: answers.append(connect(path, timeout_s=30)(b"request")))
    asking.start()
    with worker_says(path, [framed(Kind.ENVELOPE, b"answer")]):
        asking.join()
    assert answers == [b"answer"]


def test_health_is_what_the_worker_says(path):
    with worker_says(path, [framed(Kind.HEALTH, json.dumps({"paused": False}).encode())]) as requests:
        assert health(path) == {"paused": False}
    assert requests == [b""]


def test_the_flower_side_s_end_loads_no_heavy_library():
    probe = (
        "import sys, grandrounds.client.worker_socket\n"
        "print({'torch', 'numpy', 'pydantic', 'cryptography', 'flwr', 'asyncio'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
