"""When an update leaves tells nothing of what was drawn."""

import pytest
from support.process.resident_process import ones
from support.study.federation import Federation, small_study

from grandrounds.client.worker.instant import AnswerInstant, at_once
from grandrounds.common.protocol.messages import MaskedInput


class Clock:
    """Time that passes where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def left_at(pace: type, work_s: float, *, after_s: float = 30.0) -> tuple[bytes, float]:
    """What is answered to a question at 0, and when, where computing takes ``work_s``."""
    clock = Clock()
    instant = pace(after_s, clock=clock, sleep=clock.sleep)

    def compute() -> bytes:
        clock.sleep(work_s)
        return b"masked"

    return instant(compute), clock.now - 100.0


@pytest.mark.parametrize("work_s", [0.0, 0.1, 29.9, 30.0])
def test_an_update_leaves_at_its_instant_whatever_it_took(work_s: float) -> None:
    assert left_at(AnswerInstant, work_s) == (b"masked", 30.0)


def test_an_update_that_is_not_ready_at_its_instant_never_leaves() -> None:
    answer, _ = left_at(AnswerInstant, 30.1)
    assert answer == b""


class _AsSoonAsReady(AnswerInstant):
    def __call__(self, compute):
        return at_once(compute)


def test_without_an_instant_the_time_of_an_answer_tells_how_much_was_drawn() -> None:
    assert left_at(_AsSoonAsReady, 3.0) != left_at(_AsSoonAsReady, 20.0)


def test_a_site_that_was_late_says_nothing_more_in_that_attempt_and_takes_part_in_the_next() -> None:
    federation = Federation(study=small_study(training={"rounds": 1, "max_attempts": 3}), dimension=7, release=ones)
    late = iter([True, False])

    def pace(compute):
        answer = compute()
        return b"" if next(late) else answer

    federation.workers["site-2"]._pace = pace
    federation.workers["site-3"]._pace = lambda compute: b""
    federation.run()
    first, second = (
        [(answer.sender, answer.exchange) for _, answer in federation.answers(attempt)] for attempt in (1, 2)
    )
    assert not any(sender == "site-2" and exchange == MaskedInput.exchange for sender, exchange in first)
    assert [exchange for sender, exchange in first if sender == "site-2"][-1] == "shares"
    assert ("site-2", MaskedInput.exchange) in second
