"""A training whose server died goes on from its last checkpoint and its ledger, or says why it cannot."""

from dataclasses import replace

import numpy as np
import pytest
from support.study.federation import Federation, lost_after_shares, small_study

from grandrounds.common.errors import StorageError
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.server.rounds.ledger_writer import LedgerWriter

ROUNDS, EXCHANGES_OF_A_ROUND, EXCHANGES_UNTIL_CHARGED = 3, 5, 3


def exchanges(run, number):
    """So many exchanges with all sites, or as many as there are."""
    training = run.training
    for _ in range(number):
        if training.finished:
            return
        for site, message in training.messages().items():
            training.receive(site, run.workers[site].handle(message))
        training.advance()


def restarted(run):
    """The server's process died: what it has is what it had written."""
    run.ledger = LedgerWriter(identity=run.server, store=run.lines.append, verified=VerifiedLedger.of(run.lines))
    return run.open_training()


def resumable(*, noise_multiplier=None, **training):
    """Without a model: each site's update is a vector of ones."""
    study = small_study(
        noise_multiplier=noise_multiplier,
        training={"rounds": ROUNDS, "max_attempts": 9, "optimizer": "adam", **training},
    )
    return Federation(
        study=study, dimension=7, release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4")
    )


def losing_two(*attempts):
    return lambda site, envelope: any(
        lost_after_shares(site_1=attempt, site_5=attempt)(site, envelope) for attempt in attempts
    )


@pytest.fixture(scope="module")
def through():
    """One that went through."""
    run = resumable()
    run.open_training()
    exchanges(run, 99)
    return run


@pytest.mark.parametrize("done", range(ROUNDS * EXCHANGES_OF_A_ROUND + 1))
def test_a_training_whose_server_died_between_two_exchanges_ends_as_one_that_went_through(done, through):
    run = resumable()
    run.open_training()
    exchanges(run, done)
    training = restarted(run)
    exchanges(run, 99)
    np.testing.assert_array_equal(training.adapter, through.training.adapter)
    assert [closed.round for closed in training.rounds] == [1, 2, 3]
    spent = ROUNDS + (done < ROUNDS * EXCHANGES_OF_A_ROUND)
    assert training.accountant.attempts_committed == len(training.ledger.verified.attempts) == spent
    lost = done < ROUNDS * EXCHANGES_OF_A_ROUND and done % EXCHANGES_OF_A_ROUND >= EXCHANGES_UNTIL_CHARGED
    assert {worker.charges for worker in run.workers.values()} == {ROUNDS + lost}


def test_what_a_restarted_training_says_of_its_rounds_is_what_was_said_before():
    run = resumable(noise_multiplier=2.0)
    before = run.run(losing_two(1, 3)).training.rounds
    assert restarted(run).rounds == before
    assert [len(closed.outcomes) for closed in before] == [2, 2, 1]
    assert before[0].epsilon_spent < before[1].epsilon_spent < before[2].epsilon_spent


class DiedError(Exception):
    """The process ended here."""


@pytest.mark.parametrize("saved", [True, False])
def test_a_round_whose_checkpoint_was_saved_is_closed_and_one_whose_was_not_is_tried_again(saved):
    run = resumable()
    training = run.open_training()

    def dies(checkpoint):
        run.checkpoints += [checkpoint] * saved
        raise DiedError

    training.save = dies
    with pytest.raises(DiedError):
        exchanges(run, EXCHANGES_OF_A_ROUND)
    assert training.ledger.verified.rounds == []
    training = restarted(run)
    assert [closed.round for closed in training.rounds] == [1] * saved
    exchanges(run, 99)
    assert [closed.round for closed in training.rounds] == [1, 2, 3]
    assert training.accountant.attempts_committed == ROUNDS + (not saved)


def test_where_the_schedule_was_used_up_a_restarted_training_is_over_and_begins_nothing():
    run = resumable(max_attempts=3)
    run.run(losing_two(2, 3))
    before = list(run.lines)
    training = restarted(run)
    assert training.finished
    assert [closed.round for closed in training.rounds] == [1]
    assert [outcome.attempt for outcome in training.exhausted.outcomes] == [2, 3]
    assert run.lines == before


def of_another_adapter(checkpoint):
    after = replace(checkpoint.last_step.after, adapter=checkpoint.adapter + 1)
    return replace(checkpoint, last_step=replace(checkpoint.last_step, after=after))


def of_another_optimizer(checkpoint):
    state = bytearray(checkpoint.last_step.after.optimizer)
    state[0] ^= 1
    after = replace(checkpoint.last_step.after, optimizer=bytes(state))
    return replace(checkpoint, last_step=replace(checkpoint.last_step, after=after))


FOREIGN = {
    "another study's": (lambda checkpoint: replace(checkpoint, study="00" * 32), "was not saved with this ledger"),
    "another ledger's": (
        lambda checkpoint: replace(checkpoint, ledger_head="0f" * 32),
        "was not saved with this ledger",
    ),
    "a longer ledger's": (lambda checkpoint: replace(checkpoint, ledger_length=99), "was not saved with this ledger"),
    "of a round further on": (lambda checkpoint: replace(checkpoint, round=4), "is of round 4, and the ledger has 2"),
    "with another adapter": (of_another_adapter, "has another adapter than the ledger"),
    "with another optimiser": (of_another_optimizer, "has another adapter than the ledger"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_checkpoint_that_the_ledger_does_not_bear_out_is_refused_and_no_attempt_begins(foreign):
    change, complaint = FOREIGN[foreign]
    run = resumable()
    run.open_training()
    exchanges(run, 2 * EXCHANGES_OF_A_ROUND)
    before = list(run.lines)
    run.checkpoints[-1] = change(run.checkpoints[-1])
    with pytest.raises(StorageError, match=complaint):
        restarted(run)
    assert run.lines == before


def test_an_older_checkpoint_is_refused():
    run = resumable()
    run.open_training()
    exchanges(run, 2 * EXCHANGES_OF_A_ROUND)
    run.checkpoints.pop()
    with pytest.raises(StorageError, match="is of round 1, and the ledger has 2"):
        restarted(run)


def test_an_older_ledger_is_refused():
    run = resumable()
    run.open_training()
    exchanges(run, 2 * EXCHANGES_OF_A_ROUND)
    del run.lines[-3:]
    with pytest.raises(StorageError, match="was not saved with this ledger"):
        restarted(run)
