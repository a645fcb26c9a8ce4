"""The worker's socket against real processes: who is answered, in which order, and what no peer can do to it."""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.process.resident_process import SITE, ResidentProcess, finish, ones, refusal
from support.study.federation import Federation, reserved, small_study

from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.listener import serve
from grandrounds.client.worker.service import WorkerService
from grandrounds.client.worker.worker import Worker
from grandrounds.client.worker_socket import HEAD, Kind, connect, health
from grandrounds.common.errors import StorageError
from grandrounds.common.ledger.message_sizes import largest_request_bytes
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert, MaskedInput, RefusalCode
from grandrounds.common.system.content import BLOCK_BYTES
from grandrounds.deploy.bench.peak_memory import most_resident_bytes

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def federation_of(dimension):
    return Federation(study=small_study(training={"max_attempts": 9}), dimension=dimension, release=ones)


@pytest.fixture
def federation():
    return federation_of(7)


@pytest.fixture
def site(tmp_path, federation):
    with ResidentProcess(tmp_path, federation) as process:
        yield process


@contextlib.contextmanager
def peer_of(site):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        peer.connect(str(site.socket))
        yield peer


def is_left(peer):
    """Whether the worker ends the connection, without a byte."""
    try:
        return peer.recv(1) == b""
    except ConnectionError:
        return True


def test_an_attempt_is_answered_over_the_socket_from_begin_to_unmask(site, federation):
    site.start()
    attempt = finish(federation, federation.attempt(), site.exchange)
    assert attempt.done
    assert SITE in attempt.survivors


def test_health_names_the_study_and_the_last_attempt_and_nothing_measured(site, federation):
    site.start()
    before = health(site.socket)
    finish(federation, federation.attempt(), site.exchange)
    after = health(site.socket)
    assert after == before | {"last_attempt": 1}
    assert set(before) == {"site", "study", "manifest", "up_since", "last_attempt", "exchange", "paused"}
    assert (before["study"], before["manifest"]) == (federation.manifest.study_id, federation.manifest.sha256)
    assert (before["last_attempt"], before["exchange"], before["paused"]) == (0, None, False)


def test_health_is_answered_while_an_update_is_computed(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    with site.holding_its_update(attempt) as answers:
        assert health(site.socket)["exchange"] == "ciphertexts"
    assert Envelope.parse(answers[0]).exchange == MaskedInput.exchange


def test_a_worker_that_lost_a_device_ends_and_says_why_and_no_update_leaves(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    (site.folder / "lost").touch()
    with pytest.raises(ConnectionError):
        site.exchange(attempt.messages()[SITE])
    site.process.join()
    assert site.process.exitcode == 1
    assert "the process that computes on cuda:1 has ended" in site.errors()


def test_a_request_larger_than_the_study_s_largest_is_refused_before_it_is_read(site, federation):
    site.start()
    largest = largest_request_bytes(federation.manifest)
    with peer_of(site) as peer:
        peer.sendall(HEAD.pack(Kind.ENVELOPE, largest + 1))
        assert is_left(peer)
    with peer_of(site) as peer:
        peer.sendall(HEAD.pack(Kind.ENVELOPE, largest))
        peer.settimeout(0)
        with pytest.raises(BlockingIOError):
            peer.recv(1)


def test_a_large_request_is_answered_and_is_never_in_the_worker_s_memory(tmp_path):
    federation = federation_of(4_300_000)
    begin = bytes(federation.attempt().messages()[SITE][:])
    with ResidentProcess(tmp_path, federation) as site:
        site.start()
        before = resident_bytes(site)
        assert Envelope.parse(site.exchange(begin)).exchange == Advert.exchange
        assert resident_bytes(site) - before < len(begin)
        assert not list((tmp_path / "state").glob("tmp*")), "no name is left behind"


def resident_bytes(site):
    """The most memory that the site's process ever had."""
    return most_resident_bytes(Path(f"/proc/{site.process.pid}/status").read_text())


def test_a_request_for_which_the_disk_has_no_room_costs_that_request_alone(tmp_path):
    federation = federation_of(BLOCK_BYTES // 4)
    begin = bytes(federation.attempt().messages()[SITE][:])
    with ResidentProcess(tmp_path, federation) as site:
        site.start()
        resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        with pytest.raises(ConnectionError):
            site.exchange(begin)
        (said,) = [line["event"] for line in site.log() if "unanswered" in line["event"]]
        assert "File too large" in said
        assert "free space" in said
        resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert Envelope.parse(site.exchange(begin)).exchange == Advert.exchange


@pytest.mark.parametrize("sent", [b"", HEAD.pack(Kind.ENVELOPE, 9)[:-1], HEAD.pack(Kind.ENVELOPE, 9) + bytes(8)])
def test_a_peer_that_hangs_is_left_and_the_others_are_answered_meanwhile(site, federation, sent):
    site.start(patience_s=1.0)
    with peer_of(site) as hanging:
        hanging.sendall(sent)
        assert site.exchange(federation.attempt().messages()[SITE]), "and gets its answer"
        assert is_left(hanging)


def test_a_peer_that_does_not_take_its_answer_holds_nobody_up_for_good(tmp_path):
    federation = federation_of(300_000)  # larger than a socket's buffers
    with ResidentProcess(tmp_path, federation) as site:
        site.start(patience_s=1.0)
        attempt = federation.attempt()
        site.ask(federation, attempt, exchanges=2)
        due = attempt.messages()[SITE]
        with peer_of(site) as hanging:
            hanging.sendall(HEAD.pack(Kind.ENVELOPE, len(due)) + due)
            assert site.exchange(due) == b""
        site.stop()
        assert "a peer was lost: TimeoutError" in [line["event"] for line in site.log()]


def test_who_leaves_in_the_middle_loses_the_answer_and_gets_no_second_one(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    due = attempt.messages()[SITE]
    os.mkfifo(site.folder / "hold")
    with peer_of(site) as leaving:
        leaving.sendall(HEAD.pack(Kind.ENVELOPE, len(due)) + due)
        with site.held_update():
            leaving.close()
    assert site.exchange(due) == b"", "the charge is paid, and its one answer was given"
    assert SITE in finish(federation, federation.attempt(2), site.exchange).survivors


def test_who_left_before_its_turn_is_not_answered(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    later = federation.attempt(2).messages()[SITE]
    with site.holding_its_update(attempt) as answers, peer_of(site) as impatient:
        impatient.sendall(HEAD.pack(Kind.ENVELOPE, len(later)) + later)
    assert answers
    site.stop()
    assert "advert" not in [line["event"].split()[-1] for line in site.log() if line.get("attempt") == 2]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_that_a_peer_sends_stops_the_worker(fuzzed, data):
    head = st.builds(HEAD.pack, st.integers(0, 255), st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)))
    body = st.one_of(st.binary(max_size=300), st.just(fuzzed.begin), st.just(fuzzed.begin[:-1]))
    framed = body.map(lambda content: HEAD.pack(Kind.ENVELOPE, len(content)) + content)
    pieces = data.draw(st.lists(st.one_of(st.binary(max_size=40), head, body, framed), max_size=4))
    waits = data.draw(st.booleans())  # drawn before anything can fail: what is drawn may not depend on the worker
    with peer_of(fuzzed) as peer, contextlib.suppress(ConnectionError):
        for piece in pieces:
            peer.sendall(piece)
        if waits:
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1000)
    assert health(fuzzed.socket)["site"] == SITE


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    federation = Federation(study=small_study(), dimension=7, release=ones)
    with ResidentProcess(tmp_path_factory.mktemp("fuzzed"), federation) as process:
        process.start()
        process.begin = federation.attempt(2).messages()[SITE]
        yield process
        process.stop()
        assert {line["event"] for line in process.log()} >= {"up", "down"}
        assert not [line for line in process.log() if line["event"].startswith("unexpected")]


def test_a_worker_killed_between_two_messages_is_replaced_on_its_socket_and_has_left_the_attempt(site, federation):
    site.start()
    attempt = federation.until("masked-input", federation.attempt())  # of which this process has seen nothing
    assert Envelope.parse(site.exchange(federation.attempt().messages()[SITE])).exchange == "advert"
    site.kill()
    assert site.socket.is_socket(), "which nobody answers"
    site.start()
    assert refusal(site.exchange(attempt.messages()[SITE])) == RefusalCode.PROTOCOL
    assert SITE in finish(federation, federation.attempt(2), site.exchange).survivors


def test_a_worker_killed_after_its_charge_is_silent_in_that_attempt_for_good(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=3)
    due = attempt.messages()[SITE]
    site.kill()
    site.start()
    assert site.exchange(due) == b""
    assert SITE in finish(federation, federation.attempt(2), site.exchange).survivors


def test_a_second_worker_of_a_site_is_refused_and_the_first_one_goes_on(site):
    site.start()
    assert "another worker holds" in site.fails_to_start()
    assert health(site.socket)["site"] == SITE


def test_another_site_s_live_socket_is_not_taken_over(site, federation, tmp_path):
    site.start()
    with ResidentProcess(tmp_path / "other", federation) as other:
        (other.folder / "run").symlink_to(site.socket.parent)
        assert "another worker answers there" in other.fails_to_start()
    assert health(site.socket)["site"] == SITE


def test_a_socket_in_a_folder_that_is_open_to_everybody_is_refused(site):
    site.socket.parent.mkdir(mode=0o755)
    assert "open to more than mode 750" in site.fails_to_start()


def test_a_worker_whose_socket_cannot_be_opened_gives_its_state_free(tmp_path, federation):
    (tmp_path / "run").mkdir(mode=0o755)
    resident = WorkerService(
        Worker(
            name=SITE,
            identity=federation.identities[SITE],
            manifest=federation.manifest,
            release=ones(federation.manifest, SITE),
            state=reserved(SiteState.open(tmp_path / "state"), federation.manifest),
        )
    )
    with pytest.raises(StorageError, match="open to more than mode 750"):
        serve(resident, tmp_path / "run" / "worker.sock")
    SiteState.open(tmp_path / "state").close()


def test_socket_and_log_are_open_to_the_group_and_to_nobody_else(site):
    site.start()
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (site.socket.parent, site.socket, site.folder / "worker.log")
    ]
    assert modes == [0o750, 0o660, 0o640]


def answer_as(user, ask):
    """What ``ask`` returns in a process of another user, who is of this one's group; None where it was refused."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(user)
            os.write(writing, json.dumps(ask()).encode())
        except ConnectionError:
            os.write(writing, b"null")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return json.loads(said.read())


@AS_ROOT
@pytest.mark.parametrize("users", [(), (NOBODY,)])
def test_only_the_users_that_were_named_are_answered(federation, users):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder that is closed to others
        Path(folder).chmod(0o755)
        with ResidentProcess(Path(folder), federation) as site:
            site.start(users=users)
            answered = answer_as(NOBODY, lambda: health(site.socket))
            assert (answered is not None) == bool(users)
            assert health(site.socket)["site"] == SITE
            refused = [line for line in site.log() if line["event"] == f"user {NOBODY} is not allowed to ask"]
            assert len(refused) == (not users)


def stopped(site, stop):
    """The worker is told to stop, and lets nobody new in from here on."""
    os.kill(site.process.pid, stop)
    with contextlib.suppress(OSError):
        while True:
            health(site.socket)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_finishes_its_answer_and_gives_socket_and_state_free(site, federation, stop):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    with site.holding_its_update(attempt) as answers:
        stopped(site, stop)
    assert Envelope.parse(answers[0]).exchange == MaskedInput.exchange
    site.ends()
    assert site.errors() == ""
    assert not site.socket.exists()
    site.start()
    assert health(site.socket)["last_attempt"] == 1


def test_those_who_wait_for_their_turn_when_the_worker_stops_are_left_without_an_answer(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=2)
    begin = federation.attempt(2).messages()[SITE]
    with site.holding_its_update(attempt) as answers, peer_of(site) as waiting:
        waiting.sendall(HEAD.pack(Kind.ENVELOPE, len(begin)) + begin)
        stopped(site, signal.SIGTERM)
        site.release_update()
        assert is_left(waiting)
    assert answers
    site.ends()


def test_a_paused_site_refuses_what_is_new_and_finishes_what_it_paid_for(site, federation):
    site.start()
    attempt = federation.attempt()
    site.ask(federation, attempt, exchanges=3)
    (site.folder / "paused").touch()
    assert health(site.socket)["paused"]
    assert SITE in finish(federation, attempt, site.exchange).survivors
    assert attempt.done
    begin = federation.attempt(2).messages()[SITE]
    assert refusal(site.exchange(begin)) == RefusalCode.PAUSED
    (site.folder / "paused").unlink()
    assert Envelope.parse(site.exchange(begin)).exchange == "advert", "its serial was not spent"
    assert all(set(line) <= {"time", "level", "event", "exchange", "attempt", "code"} for line in site.log())
    assert [line["code"] for line in site.log() if "code" in line] == ["paused"]


def test_requests_of_several_peers_at_once_are_all_answered_one_after_the_other(site, federation):
    site.start()
    begin = federation.attempt().messages()[SITE]
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(connect(site.socket, timeout_s=60)(begin))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert sum(Envelope.parse(answer).exchange == "advert" for answer in answers) == 1
