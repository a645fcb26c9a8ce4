"""How the nodes of Flower's simulation reach their workers."""

import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Client
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from grandrounds.common.errors import StorageError
from grandrounds.deploy.flower.simulated_nodes import AnsweringGrid, ask, listening
from grandrounds.deploy.simulation.local_grid import LocalGrid

NORTH, SOUTH = 11, 12
PATIENCE_S = 60


def failing(request: bytes) -> bytes:
    raise ValueError("a record's text")


WORKERS = {NORTH: lambda request: b"north: " + request, SOUTH: lambda request: b"south: " + request}


def a_node(node_id: int, run_id: int) -> Context:
    return Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def answers(workers=WORKERS, lost=()) -> dict[int, bytes | None]:
    """What each node gets for b"hello"; None where its worker left."""
    run_id, local = secrets.randbits(63), LocalGrid({}, lambda site, message: False)
    with ThreadPoolExecutor() as nodes, listening(run_id) as place:
        grid = AnsweringGrid(local, place, workers, lambda node, message: node in lost)
        grid.push_messages(Message(RecordDict(), node, MessageType.TRAIN) for node in workers)
        asked = {node: nodes.submit(ask(a_node(node, run_id)), b"hello") for node in workers}
        while not all(answer.done() for answer in asked.values()):
            assert list(grid.pull_messages([])) == []
    return {node: answer_of(future) for node, future in asked.items()}


def answer_of(future: Future) -> bytes | None:
    with suppress(OSError, EOFError):
        return future.result(PATIENCE_S)
    return None


def test_each_node_gets_the_answer_of_its_own_site_s_worker_while_replies_are_pulled():
    assert answers() == {NORTH: b"north: hello", SOUTH: b"south: hello"}


def test_a_message_that_is_lost_is_met_with_silence():
    assert answers(lost=[SOUTH]) == {NORTH: b"north: hello", SOUTH: b""}


def test_a_worker_that_fails_stays_silent_and_the_others_answer(caplog):
    assert answers({**WORKERS, NORTH: failing}) == {NORTH: None, SOUTH: b"south: hello"}
    assert "ValueError" in caplog.text
    assert "a record's text" not in caplog.text


def test_who_still_waits_when_the_run_ends_waits_no_longer():
    with listening(secrets.randbits(63)) as place:
        waiting = Client(place.getsockname(), family="AF_UNIX")
        waiting.send_bytes(str(NORTH).encode())
    with waiting, pytest.raises((OSError, EOFError)):
        waiting.recv_bytes()


def test_who_asks_before_or_after_a_run_is_told_at_once():
    with pytest.raises(FileNotFoundError):
        ask(a_node(NORTH, secrets.randbits(63)))(b"hello")


def test_no_other_user_can_ask_and_nothing_is_left_behind():
    run_id = secrets.randbits(63)
    with listening(run_id) as place:
        folder = Path(place.getsockname()).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_place_that_somebody_else_was_first_at_is_not_used():
    run_id = secrets.randbits(63)
    with listening(run_id), pytest.raises(StorageError, match="cannot be made"), listening(run_id):
        pass


def test_a_place_with_too_long_a_path_is_refused(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(StorageError, match="too long"), listening(1):
        pass
