"""The resident worker between its socket and its state: it never raises, can be paused, and bounds what it reads."""

import logging
import os
from pathlib import Path

import pytest
from support.process.resident_process import SITE, finish, ones, refusal
from support.study.federation import Federation, reserved, small_study

from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker import service, worker
from grandrounds.client.worker.instant import at_once
from grandrounds.client.worker.log import JsonLines
from grandrounds.client.worker.service import WorkerService
from grandrounds.client.worker.worker import Worker
from grandrounds.common.ledger.message_sizes import largest_request_bytes
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Close, Invitation, RefusalCode
from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study

NAME = "Mrs Abernathy"
EXCHANGES = ("advert", "shares", "masked-input", "consistency", "unmask")


@pytest.fixture
def federation():
    return Federation(study=small_study(), dimension=7, release=ones)


class Paused:
    """Whether the site is paused, as a test says."""

    def __init__(self):
        self.now = False

    def __call__(self):
        return self.now


def resident_of(federation, *, release=None, is_paused=lambda: False, pace=at_once):
    return WorkerService(
        Worker(
            name=SITE,
            identity=federation.identities[SITE],
            manifest=federation.manifest,
            release=release or ones(federation.manifest, SITE),
            state=reserved(SiteState.in_memory(), federation.manifest),
            pace=pace,
        ),
        is_paused=is_paused,
    )


def until(federation, resident, exchange):
    """An attempt in which the resident is asked for ``exchange`` next."""
    attempt = federation.attempt()
    while attempt.exchange != exchange:
        for site, message in attempt.messages().items():
            answer = resident.answer(message) if site == SITE else federation.workers[site].handle(message)
            attempt.receive(site, answer)
        attempt.advance()
    return attempt


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_site_that_is_paused_takes_part_to_the_end_in_what_it_paid_for_and_in_nothing_else(federation, exchange):
    paused = Paused()
    resident = resident_of(federation, is_paused=paused)
    attempt = until(federation, resident, exchange)
    paused.now = True
    answer = resident.answer(attempt.messages()[SITE])
    if exchange in ("consistency", "unmask"):
        assert Envelope.parse(answer).exchange == exchange
    else:
        assert refusal(answer) == RefusalCode.PAUSED
        assert Envelope.parse(answer).attempt == 1
        Envelope.parse(answer).verify(federation.identities[SITE].public_key)


def test_a_site_that_is_paused_between_attempts_says_nothing_more_of_the_one_it_paid_for(federation):
    paused = Paused()
    resident = resident_of(federation, is_paused=paused)
    attempt = until(federation, resident, "masked-input")
    due = attempt.messages()[SITE]
    assert Envelope.parse(resident.answer(due)).exchange == "masked-input"
    paused.now = True
    assert resident.answer(due) == b"", "the silence of a site that has paid"


@pytest.mark.parametrize(
    "message", [Close(ledger_length=1, ledger_head="11" * 32), Invitation(ledger_length=0, ledger_head="00" * 32)]
)
def test_a_site_that_is_paused_signs_neither_study_nor_ledger_whatever_it_paid_for(federation, message):
    paused = Paused()
    resident = resident_of(federation, is_paused=paused)
    finish(federation, federation.attempt(), resident.answer)
    paused.now = True
    assert refusal(resident.answer(federation.server_says(message, attempt=1))) == RefusalCode.PAUSED


def test_a_site_goes_on_where_its_pause_ends(federation):
    paused = Paused()
    resident = resident_of(federation, is_paused=paused)
    paused.now = True
    begin = federation.attempt().messages()[SITE]
    assert refusal(resident.answer(begin)) == RefusalCode.PAUSED
    paused.now = False
    assert SITE in finish(federation, federation.attempt(), resident.answer).survivors


def failing(adapter, mechanism):
    raise RuntimeError(f"no page for {NAME}")


def test_an_error_of_any_library_is_met_with_silence_and_named_by_its_type_alone(federation, caplog):
    caplog.set_level(logging.INFO, logger="grandrounds")
    resident = resident_of(federation, release=failing)
    attempt = until(federation, resident, "masked-input")
    assert resident.answer(attempt.messages()[SITE]) == b""
    log = "\n".join(JsonLines().format(record) for record in caplog.records)
    assert "unexpected: RuntimeError" in log
    assert "Abernathy" not in log
    assert SITE in finish(federation, federation.attempt(2), resident_of(federation).answer).survivors


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 300])
def test_what_is_no_message_is_refused_and_logged_as_such(federation, garbage, caplog):
    caplog.set_level(logging.INFO, logger="grandrounds.client.worker.service")
    assert refusal(resident_of(federation).answer(garbage)) == RefusalCode.PROTOCOL
    logged = [record for record in caplog.records if record.name == "grandrounds.client.worker.service"]
    assert [record.code for record in logged] == ["protocol"]


def test_the_log_says_what_was_asked_and_what_it_was_answered_by(federation, caplog):
    caplog.set_level(logging.INFO, logger="grandrounds.client.worker.service")
    finish(federation, federation.attempt(), resident_of(federation).answer)
    assert [record.exchange for record in caplog.records] == [
        "begin",
        "adverts",
        "ciphertexts",
        "survivors",
        "consistencies",
    ]
    assert [record.getMessage().removeprefix("answered by ") for record in caplog.records] == list(EXCHANGES)
    assert {record.attempt for record in caplog.records} == {1}


def test_the_largest_request_allows_for_every_entry_of_a_ledger_whose_names_are_as_long_as_they_may_be():
    plain = small_study(training={"rounds": 2, "max_attempts": 3})
    sites = [{"name": f"site-{number}".ljust(63, "x"), "nominal_units": 4, "max_units": 5} for number in range(5)]
    federation = Federation(study=validated(Study, plain.model_dump() | {"sites": sites}), dimension=7, release=ones)
    before = len(federation.lines)
    federation.run()
    assert len(federation.training.rounds) == 2
    written = sum(len(line) + 4 for line in federation.lines[before:])
    longer = validated(Study, federation.study.model_dump() | {"training": plain.training.model_dump()})
    manifest = federation.manifest.model_copy(
        update={"study": longer.model_copy(update={"training": longer.training.model_copy(update={"max_attempts": 4})})}
    )
    an_attempt = largest_request_bytes(manifest) - largest_request_bytes(federation.manifest)
    assert written / 2 < an_attempt < 10 * written


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_an_update_has_freed_is_given_back_before_its_instant_and_not_between_that_and_its_leaving(
    federation, monkeypatch
):
    """How long it takes tells how much was drawn."""
    happened = []
    for module in (worker, service):
        monkeypatch.setattr(module, "return_freed", lambda: happened.append("freed"))

    def pace(compute):
        happened.append("asked")
        answer = compute()
        happened.append("its instant")
        return answer

    resident = resident_of(federation, pace=pace)
    attempt = until(federation, resident, "masked-input")
    happened.clear()
    resident.answer(attempt.messages()[SITE])
    assert happened == ["freed", "asked", "freed", "its instant"]


def test_what_an_answer_has_freed_is_not_kept_at_the_next(federation):
    resident = resident_of(federation)
    pairs = [(bytearray(100 << 10), bytearray(2 << 10)) for _ in range(600)]  # one of each is freed between others
    kept = [small for _, small in pairs]
    full = resident_bytes()
    del pairs
    resident.answer(b"none")
    assert full - resident_bytes() > 30 << 20
    assert len(kept) == 600
