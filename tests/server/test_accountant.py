from dataclasses import replace

import pytest

from grandrounds.common.errors import PrivacyError, ScheduleExhaustedError
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.server.accountant import CentralAccountant

EVENT = SampledGaussianRelease(sampling_probability=0.4, noise_multiplier=2.0, trust="local")
STEPS = 3
DELTA = 1e-4


def _accountant(max_attempts: int, committed: int = 0) -> CentralAccountant:
    schedule = Schedule(event=EVENT, count=STEPS * max_attempts)
    return CentralAccountant(schedule=schedule, max_attempts=max_attempts, delta=DELTA, committed=committed)


def test_an_attempt_beyond_the_schedule_is_refused_and_not_counted() -> None:
    accountant = _accountant(2)
    for _ in range(2):
        accountant.check()
        accountant.commit()
    for refuse in (accountant.check, accountant.commit):
        with pytest.raises(ScheduleExhaustedError, match="all 2 attempts"):
            refuse()
    assert accountant.attempts_committed == 2


def test_checking_commits_nothing() -> None:
    accountant = _accountant(1)
    accountant.check()
    accountant.check()
    assert accountant.attempts_committed == 0


def test_the_claim_is_that_of_the_whole_schedule_from_the_start() -> None:
    accountant = _accountant(4)
    whole = epsilon(Schedule(event=EVENT, count=4 * STEPS), delta=DELTA)
    assert accountant.epsilon_of_schedule == whole
    accountant.commit()
    assert accountant.epsilon_of_schedule == whole


def test_progress_composes_the_steps_of_the_attempts_begun() -> None:
    accountant = _accountant(4)
    assert accountant.epsilon_spent == 0.0
    figures = []
    for attempts in range(1, 5):
        accountant.commit()
        assert accountant.epsilon_spent == epsilon(Schedule(event=EVENT, count=attempts * STEPS), delta=DELTA).epsilon
        figures.append(accountant.epsilon_spent)
    assert figures == sorted(set(figures))
    assert figures[-1] == accountant.epsilon_of_schedule.epsilon
    assert figures[-1] < 4 * figures[0]  # composed, not added up


def test_a_resumed_accountant_goes_on_where_it_stopped() -> None:
    accountant = _accountant(3, committed=2)
    accountant.commit()
    with pytest.raises(ScheduleExhaustedError):
        accountant.check()


@pytest.mark.parametrize("committed", [-1, 4])
def test_a_count_outside_the_schedule_is_refused(committed: int) -> None:
    with pytest.raises(PrivacyError, match="committed"):
        _accountant(3, committed=committed)


def test_a_schedule_that_is_no_whole_number_of_events_an_attempt_is_refused() -> None:
    schedule = Schedule(event=EVENT, count=7)
    with pytest.raises(PrivacyError, match="7 events"):
        CentralAccountant(schedule=schedule, max_attempts=3, delta=DELTA)
    CentralAccountant(schedule=replace(schedule, count=6), max_attempts=3, delta=DELTA)


def test_without_noise_attempts_are_counted_and_nothing_is_claimed() -> None:
    accountant = CentralAccountant(schedule=None, max_attempts=1, delta=DELTA)
    accountant.commit()
    assert accountant.epsilon_of_schedule is None
    assert accountant.epsilon_spent is None
    with pytest.raises(ScheduleExhaustedError):
        accountant.check()
