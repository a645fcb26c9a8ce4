"""Real processes, real TLS, real Flower: a study from its first command to a verified report, through a crash.

``python -m soak.killed_deployment`` kills, stops and starves every kind of process.
"""

import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from support.ledger.left_on_disk import check_kept
from support.network.real_federation import SITES, RealFederation
from support.network.socket_recorder import SocketRecorder
from support.process.operations_page import largest_messages

from grandrounds.client.site.folder import SETTINGS
from grandrounds.client.site.training_view import NEVER_LEAVES, STEPS
from grandrounds.client.worker_socket import HEAD, Kind
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status

SITE, STRUCK = "north", "south"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return RealFederation(tmp_path_factory.mktemp("f"), rounds=2, max_attempts=4)


@pytest.fixture(scope="module")
def recorder(federation):
    """Between a site's worker and all that is outside it, in a deployment that is up."""
    settings, socket = federation.study_of(SITE).path / "node" / "node.json", federation.path / "recorder.sock"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"socket": str(socket)}))
    of_site = federation.path / SITE / SETTINGS
    of_site.write_text(f"training_view = true\n{of_site.read_text()}")
    with SocketRecorder(socket, federation.study_of(SITE).path / "run" / "worker.sock") as recorder:
        federation.start()
        yield recorder
        federation.stop()


@pytest.fixture(scope="module")
def before(federation, recorder):
    """What is on disk when the server's processes and a site's worker are killed: in round 2, when all have paid."""
    running = federation.running()
    federation.until("RoundOutcome")
    federation.until("ExchangeClosed", count=8)
    federation.kill("server")
    federation.kill_worker(STRUCK)
    running.kill()
    return federation.on_disk()


@pytest.fixture(scope="module")
def events(federation, before):
    """What is told of the study after that, by the same commands."""
    federation.start("server")
    return federation.run()


@pytest.fixture(scope="module")
def left(recorder, events):
    """What left the site's worker in the whole study, as it was on the wire."""
    return [answer for _, answer in recorder.conversations]


def test_a_study_is_signed_trained_and_closed_by_all_sites(federation, events):
    assert [event["event"] for event in events][-1] == "finished"
    status = federation.status()
    assert (status["rounds"], status["attempts"][0], status["closed"]) == ([2, 2], 3, True)
    assert set(status["signed"]) == set(status["closing_signatures"]) == set(SITES)


def test_a_worker_loads_no_library_of_a_precision_that_is_not_its_study_s(federation, events):
    maps = Path(f"/proc/{federation.worker(SITE)}/maps").read_text()
    assert "libtorch" in maps and "bitsandbytes" not in maps


def test_it_goes_on_after_all_processes_of_the_server_and_a_site_s_worker_were_killed(federation, before, events):
    after = federation.on_disk()
    check_kept([before, after])
    assert [record.ended for record in VerifiedLedger.of(after.lines).attempts] == [True, False, True], (
        "one attempt is lost"
    )
    assert all(after.paid(site) == {1, 2, 3} for site in SITES)


def test_what_it_leaves_is_verified_by_who_knows_the_manifest(federation, events):
    verdict = verify(federation.server / "study", manifest_hash=federation.bundle.manifest.sha256)
    assert {finding.status for finding in verdict.findings} == {Status.AGREES, Status.ABSENT}, verdict


@pytest.mark.parametrize("attempt", [1, 3])
def test_an_attempt_takes_five_exchanges(attempt, federation, events):
    told = [event for event in federation.progress() if event["event"] == "ExchangeClosed"]
    exchanges = [event["exchange"] for event in told if event["attempt"] == attempt]
    assert exchanges == ["advert", "shares", "masked-input", "consistency", "unmask"]


def test_every_site_paid_what_the_ledger_says_and_had_reserved_it_before(federation, events):
    verified = VerifiedLedger.of(federation.on_disk().lines)
    for site in SITES:
        with sqlite3.connect(federation.path / site / "state" / "budget.sqlite") as database:
            ((reserved,),) = database.execute("SELECT count(*) FROM reservations").fetchall()
            ((charged,),) = database.execute("SELECT count(*) FROM attempts WHERE charged").fetchall()
        assert (reserved, charged) == (1, verified.charges[site])


def test_the_same_command_changes_nothing_about_a_study_that_is_finished(federation, events):
    finished = {path: path.read_bytes() for path in (federation.server / "study").rglob("*") if path.is_file()}
    again = federation.run()
    assert Counter(event["event"] for event in again)["RoundOutcome"] == 0
    assert again[-1]["event"] == "finished"
    assert {path: path.read_bytes() for path in finished} == finished


def test_no_key_and_no_record_is_where_it_does_not_belong(federation, events):
    secrets = [(federation.path / site / "key").read_bytes() for site in SITES]
    server = [path.read_bytes() for path in federation.server.rglob("*") if path.is_file()]
    assert not any(secret in content for secret in secrets for content in server)
    assert not any(b"no complaints" in content for content in server if b"evaluation-0" not in content)
    logs = [path.read_bytes() for path in federation.path.rglob("*.log")]
    assert logs
    assert not any(b"no complaints" in log for log in logs)


def test_what_a_site_sees_of_its_own_training_is_shown_there_and_nowhere_else(federation, events):
    first, *steps = federation.call("client", "watch", federation.path / SITE, "--once").splitlines()
    assert first == NEVER_LEAVES
    assert [step.partition(", step 1, units ")[0] for step in steps] == [
        "round 1, attempt 1",
        "round 2, attempt 2",
        "round 2, attempt 3",
    ]
    seen = federation.study_of(SITE).training
    assert len(list(seen.glob("events*"))) == 1
    others = [path for path in federation.path.rglob("*") if path.is_file() and seen not in path.parents]
    figures = [json.loads(line)["norms"][2] for line in (seen / STEPS).read_text().splitlines()[1:]]
    assert not any(str(figure).encode() in path.read_bytes() for path in others for figure in figures)


def test_every_byte_that_leaves_a_worker_is_an_envelope_that_the_operator_was_told_of(federation, left):
    most = largest_messages(sites=len(SITES), dimension=federation.bundle.manifest.dimension)
    seen = set()
    for data in left:
        kind, size = HEAD.unpack_from(data)
        assert (kind, size) == (Kind.ENVELOPE, len(data) - HEAD.size)
        envelope = Envelope.parse(data[HEAD.size :])
        envelope.verify(federation.bundle.manifest.site_keys[SITE])
        assert size <= most[envelope.exchange], envelope.exchange
        seen.add(envelope.exchange)
    assert seen == most.keys() - {"refusal"}, "each, in a study where the site does nothing wrong"


def test_no_record_s_text_and_no_patient_is_in_what_leaves_a_worker(federation, left):
    records = [json.loads(line) for line in (federation.path / f"{SITE}.jsonl").read_text().splitlines()]
    words = {value.encode() for record in records for value in record.values()}
    assert len(words) == len(records) + 1
    assert left
    assert not [word for word in words for data in left if word in data]


def test_a_site_verifies_by_itself_what_the_study_left(federation, events):
    said = federation.call("client", "fetch", federation.path / SITE)
    assert "were recomputed from what this site holds, and agree" in said


def test_a_site_checks_itself_and_reserves_and_sends_nothing(federation):
    before = (federation.path / "north" / "state" / "budget.sqlite").read_bytes()
    assert "nothing was sent" in federation.call("client", "check", federation.path / "north")
    assert (federation.path / "north" / "state" / "budget.sqlite").read_bytes() == before
