"""The worker: which messages it follows, which it refuses with a code, and when it is silent."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.study.federation import Federation, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.model.adapter import vector_bytes
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    Advert,
    Adverts,
    Ciphertexts,
    Consistencies,
    MaskedInput,
    Refusal,
    RefusalCode,
    Survivors,
    Unmask,
)

SITE = "site-2"
MAX_ATTEMPTS = 3
# The answers that are due before and after the charge, which is paid on the way to the masked input.
BEFORE_CHARGE = ("shares", "masked-input")
AFTER_CHARGE = ("consistency", "unmask")


def ones(manifest, site):
    return lambda adapter, mechanism: np.ones(7, "<u4")


@pytest.fixture
def federation():
    return Federation(study=small_study(training={"max_attempts": MAX_ATTEMPTS}), dimension=7, release=ones)


def begin(federation, serial=1, **changes):
    """The attempt's one Begin, whoever is invited."""
    return next(iter(federation.attempt(serial, **changes).messages().values()))


def refusal(federation, answer):
    """The code of a refusal, which says nothing else."""
    envelope = Envelope.parse(answer)
    envelope.verify(federation.identities[SITE].public_key)
    assert envelope.sender == SITE
    assert envelope.manifest == federation.manifest.sha256
    assert set(envelope.body) == {"code"}
    assert not envelope.payload
    return Refusal.of(envelope).code


def exchange_of(answer):
    return Envelope.parse(answer).exchange


def finish(federation, attempt):
    while not (attempt.done or attempt.aborted):
        federation.exchange(attempt)
    return attempt


def test_a_site_answers_an_attempt_from_begin_to_unmask(federation):
    attempt = federation.attempt()
    answers = [federation.exchange(attempt)[SITE] for _ in range(5)]
    assert [exchange_of(answer) for answer in answers] == ["advert", "shares", "masked-input", "consistency", "unmask"]
    assert attempt.aggregate.tolist() == [5] * 7


@pytest.mark.parametrize("serial", [1, 2])
def test_a_begin_whose_serial_is_not_above_the_last_one_is_refused(federation, serial):
    worker = federation.workers[SITE]
    assert exchange_of(worker.handle(begin(federation, 2))) == "advert"
    assert refusal(federation, worker.handle(begin(federation, serial))) == RefusalCode.SERIAL
    assert refusal(federation, worker.handle(begin(federation, serial, round=2))) == RefusalCode.SERIAL


def test_a_replayed_begin_gets_no_second_advert_before_or_after_the_attempt_is_over(federation):
    worker, attempt = federation.workers[SITE], federation.attempt()
    replayed = attempt.messages()[SITE]
    while not attempt.done:
        federation.exchange(attempt)
        answer = worker.handle(replayed)
        assert not answer or refusal(federation, answer) == RefusalCode.SERIAL
    assert refusal(federation, worker.handle(replayed)) == RefusalCode.SERIAL
    assert worker.charges == 1


def test_an_attempt_beyond_the_schedule_is_refused_by_every_site_on_its_own(federation):
    for name, worker in federation.workers.items():
        beyond = federation.attempt(MAX_ATTEMPTS + 1).messages()[name]
        assert Refusal.of(Envelope.parse(worker.handle(beyond))).code == RefusalCode.SCHEDULE
    # The serial of a refused attempt is not the last one: the schedule's own last attempt is still taken.
    assert finish(federation, federation.attempt(MAX_ATTEMPTS)).done


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ledger_length": 1}, RefusalCode.LEDGER),
        ({"ledger_head": "11" * 32}, RefusalCode.LEDGER),
        ({"round": 2}, RefusalCode.LEDGER),
        ({"invited": ("site-1", "site-3", "site-4", "site-5")}, RefusalCode.BEGIN),
        ({"invited": ("site-1", "site-2", "site-3")}, RefusalCode.BEGIN),
        ({"invited": ("site-1", "site-2", "site-3", "stranger")}, RefusalCode.BEGIN),
        ({"adapter_sha256": "11" * 32}, RefusalCode.LEDGER),
        ({"payload": vector_bytes(np.ones(7, dtype=np.float32))}, RefusalCode.ADAPTER),
        ({"payload": vector_bytes(np.zeros(8, dtype=np.float32))}, RefusalCode.ADAPTER),
        ({"payload": vector_bytes(np.full(7, np.nan, dtype=np.float32))}, RefusalCode.ADAPTER),
        ({"payload": b""}, RefusalCode.ADAPTER),
    ],
)
def test_a_begin_that_may_not_be_followed_is_refused_with_a_code_of_the_closed_list(federation, changes, code):
    worker = federation.workers[SITE]
    assert refusal(federation, worker.handle(begin(federation, **changes))) == code
    assert exchange_of(worker.handle(begin(federation))) == "advert", "its serial is not spent"


def test_a_begin_of_another_manifest_is_refused(federation):
    longer = small_study(training={"max_attempts": MAX_ATTEMPTS + 1})
    other = replace(federation, study=longer)
    assert other.manifest.sha256 != federation.manifest.sha256
    assert refusal(federation, federation.workers[SITE].handle(begin(other))) == RefusalCode.MANIFEST


def test_a_begin_signed_by_anyone_but_the_server_is_refused(federation):
    honest = Envelope.parse(begin(federation))
    signed_by_another = replace(honest, signature=bytes(64)).to_bytes()
    worker = federation.workers[SITE]
    assert refusal(federation, worker.handle(signed_by_another)) == RefusalCode.BEGIN
    fields = {"manifest": federation.manifest.sha256, "attempt": 1, "exchange": "begin", "sender": SITE}
    by_a_site = Envelope.seal(federation.identities[SITE], **fields, body=honest.body)
    assert refusal(federation, worker.handle(by_a_site.to_bytes())) == RefusalCode.BEGIN


def test_an_adapter_that_was_changed_on_the_way_is_refused(federation):
    altered = bytearray(begin(federation))
    altered[-1] ^= 1
    assert refusal(federation, federation.workers[SITE].handle(bytes(altered))) == RefusalCode.PROTOCOL


def test_a_begin_that_is_refused_leaves_the_attempt_in_progress_as_it_is(federation):
    attempt = federation.until("shares", federation.attempt(2))
    while not attempt.done:
        for refused in (begin(federation, 2), begin(federation, 9), begin(federation, 3, invited=(SITE,) * 4)):
            federation.workers[SITE].handle(refused)
        federation.exchange(attempt)
    assert SITE in attempt.survivors


@pytest.mark.parametrize("exchange", BEFORE_CHARGE + AFTER_CHARGE)
def test_a_new_begin_erases_what_is_left_of_the_older_attempt(federation, exchange):
    worker = federation.workers[SITE]
    old = federation.until(exchange, federation.attempt(1))
    older_message = old.messages()[SITE]
    advert = Advert.of(Envelope.parse(worker.handle(begin(federation, 2))))
    assert advert.charge_counter == worker.charges == (exchange in AFTER_CHARGE)
    charges = worker.charges
    assert refusal(federation, worker.handle(older_message)) == RefusalCode.PROTOCOL
    assert worker.charges == charges


def violations(federation):
    """Messages that an honest server does not send now; all but the first are signed by it."""
    says = federation.server_says
    return {
        "garbage": b"garbage",
        "an empty message": b"",
        "the wrong ciphertexts": says(Ciphertexts(u2=tuple(federation.workers)), b"\0\0\0\0"),
        "no adverts": says(Adverts(), b"\0\0\0\0"),
        "too few survivors": says(Survivors(u3=(SITE,))),
        "no consistencies": says(Consistencies(), b"\0\0\0\0"),
        "a site's message": says(Unmask(noise_link="00" * 32), b"\0\0\0\0"),
        "another attempt": federation.server_says(Survivors(u3=tuple(federation.workers)), attempt=7),
        "a refusal": says(Refusal(code=RefusalCode.BEGIN)),
        "a Begin of no use": begin(federation, 1),
    }


VIOLATIONS = tuple(violations(Federation(study=small_study(), dimension=7, release=ones)))


@pytest.mark.parametrize("violation", VIOLATIONS)
@pytest.mark.parametrize("exchange", AFTER_CHARGE)
def test_after_the_charge_a_violation_is_met_with_silence(federation, exchange, violation):
    attempt = federation.until(exchange, federation.attempt())
    worker = federation.workers[SITE]
    assert worker.charges == 1
    assert worker.handle(violations(federation)[violation]) == b""
    # A Begin of no use changes nothing; whoever sends anything else has lost the site for this attempt.
    due = attempt.messages()[SITE]
    assert bool(worker.handle(due)) == (violation == "a Begin of no use")
    assert exchange_of(worker.handle(begin(federation, 2))) == "advert"


@pytest.mark.parametrize("violation", VIOLATIONS)
@pytest.mark.parametrize("exchange", BEFORE_CHARGE)
def test_before_the_charge_a_violation_is_answered_by_a_code_of_the_closed_list(federation, exchange, violation):
    federation.until(exchange, federation.attempt())
    worker = federation.workers[SITE]
    code = refusal(federation, worker.handle(violations(federation)[violation]))
    assert code in (RefusalCode.PROTOCOL, RefusalCode.SERIAL)
    assert worker.charges == 0


@pytest.fixture(scope="module")
def in_progress():
    """Sites that have been charged, and sites that have not, in an attempt under way."""
    federations = {}
    for charged, exchange in ((False, "shares"), (True, "consistency")):
        federations[charged] = Federation(study=small_study(), dimension=7, release=ones)
        federations[charged].until(exchange, federations[charged].attempt())
    return federations


@settings(max_examples=200, deadline=None)
@given(request=st.binary(max_size=300), charged=st.booleans())
def test_no_bytes_raise_or_get_more_than_a_refusal(in_progress, request, charged):
    answer = in_progress[charged].workers[SITE].handle(request)
    assert answer == b"" if charged else refusal(in_progress[charged], answer) == RefusalCode.PROTOCOL


@pytest.mark.parametrize("exchange", BEFORE_CHARGE + AFTER_CHARGE)
def test_each_answer_is_given_once(federation, exchange):
    worker = federation.workers[SITE]
    message = federation.until(exchange, federation.attempt()).messages()[SITE]
    assert exchange_of(worker.handle(message)) == exchange
    again = worker.handle(message)
    if exchange in ("masked-input", "consistency"):
        assert again == b"", "the attempt is paid for and not over"
    else:
        assert refusal(federation, again) == RefusalCode.PROTOCOL


def test_an_attempt_is_charged_once_before_its_masked_input_and_counted_in_what_is_signed(federation):
    computed_at = []

    def release(manifest, site):
        def compute(adapter, mechanism):
            if site == SITE:
                computed_at.append(federation.workers[SITE].charges)
            return np.ones(7, "<u4")

        return compute

    federation = replace(federation, release=release)
    worker = federation.workers[SITE]
    attempt = federation.until("masked-input", federation.attempt(1))
    assert worker.charges == 0
    masked = federation.exchange(attempt)[SITE]
    assert MaskedInput.of(Envelope.parse(masked)).charge_counter == worker.charges == 1
    answers = federation.exchange(federation.attempt(2))
    assert Advert.of(Envelope.parse(answers[SITE])).charge_counter == 1, (
        "the first attempt is paid for, though unfinished"
    )
    assert computed_at == [1], "data is touched only once the charge is written"


def test_the_update_is_computed_at_the_adapter_of_the_begin(federation):
    seen = {}

    def release(manifest, site):
        def compute(adapter, mechanism):
            seen[site] = adapter.copy()
            return np.ones(7, "<u4")

        return compute

    adapter = np.arange(7, dtype=np.float32)
    federation = replace(federation, release=release, adapter=adapter)
    finish(federation, federation.attempt())
    assert all(np.array_equal(vector, adapter) for vector in seen.values())
    assert len(seen) == 5


def test_an_update_of_the_wrong_form_leaves_the_attempt_in_silence(federation):
    def wrong(manifest, site):
        return lambda adapter, mechanism: np.ones(8 if site == SITE else 7, "<u4")

    federation = replace(federation, release=wrong)
    attempt = federation.until("masked-input", federation.attempt())
    assert federation.exchange(attempt)[SITE] == b""
    assert finish(federation, attempt).dropouts == {SITE: "masked-input"}


def test_a_key_of_another_site_signs_nothing_that_the_server_takes(federation):
    federation.identities[SITE] = Identity.generate()
    impostor = replace(federation, identities=dict(federation.identities))
    attempt = federation.attempt()
    answer = impostor.workers[SITE].handle(attempt.messages()[SITE])
    attempt.receive(SITE, answer)
    assert attempt.dropouts == {SITE: "advert"}
