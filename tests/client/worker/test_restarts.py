"""A worker that is restarted, cloned or killed: nobody gets a second answer in one attempt out of it."""

from dataclasses import replace

import numpy as np
import pytest
from support.process.crashing_worker import KILLED, CrashingWorker
from support.study.federation import Federation, small_study

from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import StorageError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert, MaskedInput, Refusal, RefusalCode
from grandrounds.common.system.crash_points import CrashPoint

SITE = "site-2"
EXCHANGES = ("advert", "shares", "masked-input", "consistency", "unmask")
# Those of an attempt: the others' writes come before the study's first or after its last.
POINTS = tuple(point for point in CrashPoint if point.endswith(("_state", "_serial", "_charge")))
NOISE = np.random.default_rng(3)


def noisy(manifest, site):
    """A fresh update at each call, as a draw with its noise is."""
    return lambda adapter, mechanism: NOISE.integers(0, 1000, 7).astype("<u4")


def federation_in(folder, *, rounds=1, max_attempts=3, state=None):
    return Federation(
        study=small_study(training={"rounds": rounds, "max_attempts": max_attempts}),
        dimension=7,
        release=noisy,
        state=state or (lambda site: SiteState.open(folder / site)),
    )


def finish(federation, attempt):
    while not (attempt.done or attempt.aborted):
        federation.exchange(attempt)
    return attempt


def refusal(answer):
    return Refusal.of(Envelope.parse(answer)).code if answer else None


@pytest.mark.parametrize("exchange", EXCHANGES[1:])
def test_a_worker_restarted_between_two_messages_answers_nothing_more_in_that_attempt(tmp_path, exchange):
    federation = federation_in(tmp_path)
    attempt = federation.attempt()
    begin = attempt.messages()[SITE]
    federation.until(exchange, attempt)
    charges = federation.workers[SITE].charges
    federation.restart(SITE)
    due, worker = attempt.messages()[SITE], federation.workers[SITE]
    charged = exchange in ("consistency", "unmask")
    assert refusal(worker.handle(due)) == (None if charged else RefusalCode.PROTOCOL)
    assert refusal(worker.handle(begin)) == (None if charged else RefusalCode.SERIAL)
    assert finish(federation, attempt).done == (exchange != "shares" or SITE not in attempt.survivors)
    assert worker.charges == charges == charged
    retry = finish(federation, federation.attempt(2))
    assert SITE in retry.survivors, "the next attempt finds it whole"
    assert worker.charges == charges + 1


def forgetful(site):
    """The check removed: a state that ends with the worker."""
    return SiteState.in_memory()


def releases_out_of(federation):
    """What a server that restarts every site after each attempt gets unmasked under serial 1 alone."""
    aggregates = []
    for _ in range(2):
        attempt = finish(federation, federation.attempt(1))
        aggregates += [attempt.aggregate.tolist()] if attempt.done else []
        for site in federation.workers:
            federation.restart(site)
    return aggregates


def test_a_state_that_forgets_lets_one_attempt_of_the_schedule_release_twice(tmp_path):
    first, second = releases_out_of(federation_in(tmp_path, max_attempts=1, state=forgetful))
    assert first != second, "two draws of noise, where the claim counts one"
    assert len(releases_out_of(federation_in(tmp_path, max_attempts=1))) == 1


def unmasked_in_secret(federation, serials):
    """A server unmasks every attempt, says of each that it failed, and asks for a retry."""
    return sum(finish(federation, federation.attempt(serial)).done for serial in serials)


def test_a_retry_after_an_attempt_was_unmasked_in_secret_is_an_attempt_of_the_schedule(tmp_path):
    federation = federation_in(tmp_path, max_attempts=3)
    assert unmasked_in_secret(federation, [1, 1, 1]) == 1, "the same serial again is refused"
    assert unmasked_in_secret(federation, [2, 3, 4, 5]) == 2, "and so is what lies beyond the schedule"
    assert all(worker.charges == 3 for worker in federation.workers.values()), "each was paid for"


def test_a_site_that_does_not_count_failed_attempts_releases_beyond_the_schedule(tmp_path):
    federation = federation_in(tmp_path, max_attempts=3, state=forgetful)
    released = 0
    for _ in range(5):
        released += unmasked_in_secret(federation, [1])
        for site in federation.workers:
            federation.restart(site)
    assert released == 5


def test_a_clone_of_a_site_is_refused_its_state(tmp_path):
    federation = federation_in(tmp_path)
    with pytest.raises(StorageError, match="another worker"):
        federation.worker(SITE)


def test_a_clone_with_a_copied_state_would_send_a_second_update_under_one_serial(tmp_path):
    federation = federation_in(tmp_path)
    clone = replace(federation, state=forgetful).workers[SITE]
    begin = federation.attempt().messages()[SITE]
    adverts = [Advert.of(Envelope.parse(w.handle(begin))) for w in (clone, federation.workers[SITE])]
    assert adverts[0].mask_key != adverts[1].mask_key, "two sets of secrets live in one attempt"
    assert adverts[0].noise_end != adverts[1].noise_end, "and two chains of noise"


def test_a_site_whose_state_was_set_back_is_refused_by_its_peers(tmp_path):
    federation = federation_in(tmp_path, max_attempts=9)
    for serial in (1, 2):
        assert SITE in finish(federation, federation.attempt(serial)).survivors
    federation.workers[SITE].close()
    (tmp_path / SITE / "budget.sqlite").unlink()
    federation.workers[SITE] = federation.worker(SITE)
    attempt = federation.until("shares", federation.attempt(3))
    answers = federation.exchange(attempt)
    assert all(refusal(answers[peer]) == RefusalCode.PROTOCOL for peer in answers if peer != SITE)
    assert attempt.aborted


def test_the_server_leaves_a_site_out_whose_state_was_set_back_and_goes_on_without_it(tmp_path):
    federation = federation_in(tmp_path, rounds=3)
    training = federation.open_training()
    while not training.finished:
        if len(training.rounds) == 1 and federation.workers[SITE].charges == 1:
            federation.workers[SITE].close()
            (tmp_path / SITE / "budget.sqlite").unlink()
            federation.workers[SITE] = federation.worker(SITE)
        for site, message in training.messages().items():
            training.receive(site, federation.workers[site].handle(message))
        training.advance()
    attempts = [outcome for closed in training.rounds for outcome in closed.outcomes]
    assert [outcome.dropouts for outcome in attempts] == [{}, {SITE: "advert"}, {SITE: "advert"}]


def exchanges(federation, attempt, worker):
    """Drive the attempt with ``worker`` for the site; its answers until it dies."""
    answers = []
    while not (attempt.done or attempt.aborted):
        for site, message in attempt.messages().items():
            answer = worker.handle(message) if site == SITE else federation.workers[site].handle(message)
            if site == SITE:
                answers.append(answer)
            attempt.receive(site, answer or b"")
        attempt.advance()
    return answers


def sent(answers, kind):
    return sum(bool(answer) and is_a(kind, answer) for answer in answers)


def is_a(kind, answer):
    return Envelope.parse(answer).exchange == kind.exchange


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_loses_budget_at_most_and_answers_no_attempt_twice(tmp_path, point):
    federation = federation_in(tmp_path / "peers", max_attempts=9)
    process = CrashingWorker(tmp_path, federation)
    process.start(point)
    first = federation.attempt(1)
    begin = first.messages()[SITE]
    died = exchanges(federation, first, process)
    assert process.stop() == KILLED, "it reached the point"
    assert first.done, "its peers end the attempt without it"

    process.start()
    again = process.handle(begin)
    assert again is not None, "it lives"
    if point in (CrashPoint.BEFORE_STATE, CrashPoint.AFTER_STATE, CrashPoint.BEFORE_SERIAL):
        assert Envelope.parse(again).exchange == Advert.exchange, "it had said nothing, and its serial was not taken"
        assert sent(died, Advert) == 0
    else:
        assert again == b"" or refusal(again) == RefusalCode.SERIAL
    second = federation.attempt(2)
    answers = exchanges(federation, second, process)
    assert SITE in second.survivors
    process.stop()

    state = SiteState.open(tmp_path / "state")
    assert state.charges(federation.manifest.study_id) >= sent(died, MaskedInput) + sent(answers, MaskedInput)
    counters = [MaskedInput.of(Envelope.parse(a)).charge_counter for a in answers if a and is_a(MaskedInput, a)]
    assert counters == [state.charges(federation.manifest.study_id)]
