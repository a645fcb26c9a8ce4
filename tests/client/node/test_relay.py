"""The relay at a real SuperNode, on loopback: what reaches the worker and comes back, and what is never run."""

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.network.loopback import PATIENCE_S, Loopback, an_app, has_ended, until
from support.process.resident_process import SITE, ResidentProcess, ones
from support.study.federation import Federation, small_study

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import FIELD
from grandrounds.common.protocol.pieces import Piece, Whole
from grandrounds.common.system.processes import environment


@pytest.fixture(scope="module")
def federation():
    return Federation(study=small_study(), dimension=7, release=ones)


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("loopback")) as loopback:
        yield loopback


@pytest.fixture(scope="module")
def worker(loopback, federation):
    with ResidentProcess(loopback.root / "worker", federation) as worker:
        worker.start()
        yield worker


@pytest.fixture(scope="module")
def app(loopback):
    """The app that the site answers for, and its archive's hash."""
    return an_app(loopback.root / "app")


@pytest.fixture(scope="module")
def site(loopback, worker, app):
    _, app_sha256 = app
    site = loopback.site(SITE, worker.socket, app_sha256=app_sha256)
    loopback.enroll(site)
    loopback.start(site)
    return site


@pytest.fixture(scope="module")
def run(loopback, site, app):
    folder, _ = app
    with loopback.run(folder) as run:
        run.ask_until_there(site, b"are you there?")
        yield run


def has_run_an_app(site):
    return [path for name in ("imported", "apps") if (path := site.supernode.folder / "flower" / name).exists()]


def test_the_worker_s_answer_comes_back_as_it_signed_it_and_no_app_was_run(run, site, federation):
    attempt = federation.attempt(1)
    answer = Envelope.parse(run.ask(site, attempt.messages()[SITE]))
    answer.verify(federation.identities[SITE].public_key)
    assert (answer.exchange, answer.attempt) == ("advert", 1)
    assert not has_run_an_app(site)


def test_a_message_of_another_app_is_answered_by_silence_without_the_worker_and_nothing_of_it_is_run(
    run, loopback, site, worker, federation
):
    before = worker.log()
    another, another_sha256 = an_app(loopback.root / "another", version="1.0.1")
    with loopback.run(another) as other:
        assert other.ask_until_there(site, federation.attempt(2).messages()[SITE]) == b""
    assert f"refused: an app archive with the hash {another_sha256}" in site.log("relay")
    assert worker.log() == before
    assert not has_run_an_app(site)


def test_a_worker_s_death_over_a_message_is_silence_and_the_next_message_is_its_successor_s(
    run, site, worker, federation
):
    supernode, attempt, answers = site.process("flower-supernode"), federation.attempt(2), []
    worker.ask(federation, attempt, exchanges=2)
    os.mkfifo(worker.folder / "hold")
    asking = threading.Thread(target=lambda: answers.append(run.ask(site, attempt.messages()[SITE])))
    asking.start()
    with worker.held_update():
        worker.kill()
    asking.join()
    assert answers == [b""]
    worker.start()
    assert Envelope.parse(run.ask(site, federation.attempt(3).messages()[SITE])).exchange == "advert"
    assert site.process("flower-supernode") == supernode


def test_a_message_in_pieces_goes_on_where_it_was_after_the_node_was_killed(run, site, federation):
    message = federation.attempt(4).messages()[SITE]
    whole, half = sha256(message), len(message) // 2

    def piece(start, stop):
        said = Piece(whole=whole, size=len(message), start=start, piece=message[start:stop])
        return run.ask_until_there(site, said.model_dump())

    assert piece(0, half) == {"held": half}
    killed = site.process("grandrounds.client.node.relay")
    os.kill(killed, signal.SIGKILL)
    until(lambda: site.process("grandrounds.client.node.relay") != killed, "another relay is up")
    assert piece(0, half) == {"held": half}, "which is what it had kept"
    assert piece(half, len(message)) == {"held": len(message)}
    answer = Envelope.parse(run.ask_until_there(site, Whole(whole=whole).model_dump())[FIELD])
    assert (answer.exchange, answer.attempt) == ("refusal", 4), "of an attempt beyond the schedule, which it has read"


def test_who_has_not_the_secret_gets_no_message_and_disturbs_nobody(run, site, tmp_path, federation):
    supernode, secret = site.process("flower-supernode"), tmp_path / "secret"
    secret.write_bytes(bytes(32))
    relay = [sys.executable, "-m", "grandrounds.client.node.relay", f"127.0.0.1:{site.supernode.runtime_port}"]
    command = [*relay, secret, tmp_path / "socket", site.supernode.app_sha256, "1", tmp_path / "pieces", "1"]
    stranger = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert stranger.returncode == 1
    assert "401 Unauthorized" in stranger.stderr
    assert "authentication failed" in site.log("supernode")
    asked = f"http://127.0.0.1:{site.supernode.runtime_port}/v1/runtime/acquire-task"
    httpx.post(asked, content=b"\xff\xff", headers={"content-type": "application/protobuf"}, trust_env=False)
    assert "Invalid protobuf payload" in site.log("supernode")
    assert Envelope.parse(run.ask(site, b"still there?")).exchange == "refusal"
    assert site.process("flower-supernode") == supernode


def test_a_site_tries_until_it_is_enrolled_and_answers_again_after_its_relay_died_with_a_message_in_hand(loopback, app):
    folder, app_sha256 = app
    with socket.socket(socket.AF_UNIX) as worker:
        worker.settimeout(PATIENCE_S)
        worker.bind(str(loopback.root / "worker.sock"))
        worker.listen()
        site = loopback.site("site-1", loopback.root / "worker.sock", app_sha256=app_sha256)
        loopback.start(site)
        until(lambda: "code: 2004" in site.log("supernode"), "the server has refused the node")
        loopback.enroll(site)
        with loopback.run(folder) as run, ThreadPoolExecutor(1) as thread:
            asked = thread.submit(run.ask_until_there, site, b"a message")
            with worker.accept()[0] as in_hand:
                before = {site.process("flower-supernode"), site.process("grandrounds.client.node.relay")}
                os.kill(site.process("grandrounds.client.node.relay"), signal.SIGKILL)
                until(lambda: all(map(has_ended, before)), "the SuperNode has ended, too")
                in_hand.settimeout(PATIENCE_S)
                while in_hand.recv(1 << 16):  # to the end: who asked is no longer there
                    pass
            worker.accept()[0].close()  # from their successors: silence
            assert asked.result(PATIENCE_S) == b""
