"""Server and workers killed at named points: nothing is lost but an attempt, and a worker that pays late is noticed.

``python -m soak.killed_federation`` kills them at all points, a thousand times.
"""

import logging
from functools import partial
from unittest.mock import patch

import pytest
from soak.killed_federation import NOTHING, REPEATED, ROWS, USED_UP, WITHOUT, Plan, killed, outcome, places, row
from support.process.forked_federation import SERVER, SITES, Kill

from grandrounds.client.worker.worker import Worker
from grandrounds.common.system.crash_points import CrashPoint

FIRST, SECOND = SITES[:2]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Every place at which a process may be killed. It also loads what all studies need."""
    return places(killed(tmp_path_factory.mktemp("whole") / "study", Plan(kills=(), redelivers=False)))


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        ([Kill(FIRST, "before_serial", 2)], NOTHING),
        ([Kill(FIRST, "after_charge", 1)], WITHOUT),
        ([Kill(FIRST, "shares sent", 1), Kill(SECOND, "shares asked", 1)], REPEATED),
        ([Kill(SERVER, "after attempt-ended", 1)], REPEATED),
        ([Kill(SERVER, "half round-closed", 2), Kill(SERVER, "before round-closed", 1)], NOTHING),
        ([Kill(SERVER, "masked-input in part", 1)] * 3, USED_UP),
    ],
)
def test_a_study_whose_processes_are_killed_goes_on_and_loses_no_more_than_this(known, tmp_path, kills, expected):
    federation = killed(tmp_path / "study", Plan(kills=tuple(kills), redelivers=True))
    assert (len(federation.left), outcome(federation)) == (len(kills), expected)


def test_every_crash_point_of_a_worker_is_among_the_places(known):
    assert {kill.point for kill in known if kill.victim == FIRST} >= set(CrashPoint)


def test_the_table_has_a_row_for_every_place_and_no_other(known):
    rows = {row([kill]) for kill in known}
    assert rows == {(victim, name) for victim, names in ROWS.items() for name in names}


def owe(worker, attempt, envelope):
    worker.owed = partial(charge, worker, attempt, envelope)
    return worker._adapters.adapter(), worker.charges + 1


def pay_and_answer(worker, *message):
    vars(worker).pop("owed", lambda: None)()
    return answer(worker, *message)


charge, answer = Worker._charge, Worker._answer


def test_a_worker_that_pays_only_after_its_masked_input_has_left_would_be_noticed(known, tmp_path):
    with (
        patch.object(Worker, "_charge", owe),
        patch.object(Worker, "_answer", pay_and_answer),
        pytest.raises(AssertionError, match=r"has paid for every masked input|does not help"),
    ):
        killed(tmp_path / "study", Plan(kills=(Kill(FIRST, "masked-input sent", 1),), redelivers=False))
