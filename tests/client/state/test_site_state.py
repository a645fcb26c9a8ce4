"""The durable memory of attempts: what it refuses, what survives, and that no write escapes the crash points."""

import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.study.federation import Federation, small_study

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.patients import FingerprintKey, Patients
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import PrivacyError, ProtocolError, StorageError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Refusal, RefusalCode
from grandrounds.common.system.crash_points import CrashPoint

STUDY, OTHER = "ab" * 32, "cd" * 32


def joined(budget, *studies):
    """The budget of a site that has joined the studies, with records of nobody."""
    reservations = Reservations(budget.database)
    reservations.register(Asset.synthetic("records"))
    for study in studies:
        reservations.reserve("records", study, Amounts())
    return budget


@given(serials=st.lists(st.integers(1, 6), max_size=12), paid=st.lists(st.booleans(), min_size=12, max_size=12))
def test_serials_only_grow_and_charges_are_the_attempts_that_were_paid_for(serials, paid):
    budget = joined(SiteState.in_memory(), STUDY)
    last, charges = 0, 0
    for serial, pays in zip(serials, paid, strict=False):
        if serial <= last:
            with pytest.raises(ProtocolError):
                budget.begin(STUDY, serial)
        else:
            budget.begin(STUDY, serial)
            last = serial
            if pays:
                charges += 1
                assert budget.charge(STUDY, serial, {}) == charges
        assert (budget.last_attempt(STUDY), budget.charges(STUDY)) == (last, charges)
    assert (budget.last_attempt(OTHER), budget.charges(OTHER)) == (0, 0)


def test_an_attempt_is_paid_for_once_and_only_while_it_is_the_last_one():
    budget = joined(SiteState.in_memory(), STUDY)
    budget.begin(STUDY, 1)
    budget.charge(STUDY, 1, {})
    for attempt in (1, 2):
        with pytest.raises(ProtocolError):
            budget.charge(STUDY, attempt, {})
    budget.begin(STUDY, 2)
    budget.begin(STUDY, 3)
    with pytest.raises(ProtocolError):
        budget.charge(STUDY, 2, {})
    assert budget.charges(STUDY) == 1


def test_what_was_written_is_there_after_a_restart(tmp_path):
    budget = joined(SiteState.open(tmp_path), STUDY)
    budget.begin(STUDY, 3, [b"study", b"begun"])
    budget.charge(STUDY, 3, {"site-1": 7})
    budget.append(STUDY, [b"closed"])
    budget.close()
    budget = SiteState.open(tmp_path)
    assert budget.last_attempt(STUDY) == 3
    assert budget.is_charged(STUDY, 3)
    assert budget.peer_charges(STUDY) == {"site-1": 7}
    assert budget.ledger(STUDY) == [b"study", b"begun", b"closed"]
    assert budget.ledger(OTHER) == []


def test_no_attempt_begins_in_a_study_that_was_not_joined():
    budget = joined(SiteState.in_memory(), OTHER)
    with pytest.raises(PrivacyError, match="no budget is reserved") as refusal:
        budget.begin(STUDY, 1, [b"begun"])
    assert refusal.value.fix == "join the study first"
    assert (budget.last_attempt(STUDY), budget.ledger(STUDY)) == (0, [])


def test_a_serial_that_is_refused_brings_no_ledger_entry():
    budget = joined(SiteState.in_memory(), STUDY)
    budget.begin(STUDY, 2, [b"first"])
    with pytest.raises(ProtocolError):
        budget.begin(STUDY, 2, [b"again"])
    assert budget.ledger(STUDY) == [b"first"]


def test_a_peer_s_counter_is_remembered_at_its_highest():
    budget = joined(SiteState.in_memory(), STUDY)
    for attempt, counter in enumerate((2, 5, 4), start=1):
        budget.begin(STUDY, attempt)
        budget.charge(STUDY, attempt, {"site-1": counter})
    assert budget.peer_charges(STUDY) == {"site-1": 5}
    assert budget.peer_charges(OTHER) == {}


def test_a_second_worker_of_a_site_is_refused_while_the_first_lives(tmp_path):
    budget = SiteState.open(tmp_path)
    with pytest.raises(StorageError, match="another worker"):
        SiteState.open(tmp_path)
    budget.close()
    SiteState.open(tmp_path).close()


def test_a_killed_worker_gives_its_folder_free_and_a_living_one_does_not(tmp_path):
    holder = (
        "import sys; from pathlib import Path; from grandrounds.client.state.site_state import SiteState\n"
        "budget = SiteState.open(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="another worker"):
            SiteState.open(tmp_path)
        process.kill()
        process.wait()
        SiteState.open(tmp_path).close()


class Writes:
    """Every write to disk, with the crash points around it."""

    def __init__(self, budget_folder, monkeypatch):
        self.points: list[CrashPoint] = []
        self.committed: list[CrashPoint] = []
        self.outside: list[str] = []
        connect = sqlite3.connect

        def traced(database, **settings):
            connection = connect(database, **settings)
            if database:  # the other sites'
                connection.set_trace_callback(self.statement)
            return connection

        monkeypatch.setattr(sqlite3, "connect", traced)
        for name in ("fsync", "fdatasync", "rename", "replace"):
            monkeypatch.setattr(os, name, self.recorded(name, getattr(os, name)))
        self.budget = SiteState.open(budget_folder / "state", reach=self.points.append)

    def recorded(self, name, call):
        def recording(*args, **kwargs):
            self.write(name)
            return call(*args, **kwargs)

        return recording

    def statement(self, text):
        word = text.split()[0].upper()
        if word == "COMMIT":
            self.write(text)
        elif word not in ("BEGIN", "SELECT", "PRAGMA", "ROLLBACK") and not self.between:
            self.outside.append(text)  # in autocommit mode, a commit of its own

    @property
    def between(self):
        return bool(self.points) and self.points[-1].startswith("before")

    def write(self, what):
        if self.between:
            self.committed.append(self.points[-1])
        else:
            self.outside.append(what)


def test_every_write_of_a_site_lies_between_two_named_points_and_every_point_is_reached(tmp_path, monkeypatch):
    writes = Writes(tmp_path, monkeypatch)
    federation = Federation(
        study=small_study(),
        dimension=7,
        release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4"),
        state=lambda site: writes.budget if site == "site-2" else SiteState.in_memory(),
    ).run()
    assert federation.training.rounds
    writes.budget.append(OTHER, [b"entry"])
    reservations = Reservations(joined(writes.budget, OTHER).database)
    reservations.sign("12" * 32, study=OTHER, version=1)
    Patients(writes.budget.database, FingerprintKey(b"secret")).claim("records", ["patient"])
    reservations.cancel(OTHER)
    assert not writes.outside
    assert set(writes.points) == set(CrashPoint)
    assert writes.points[1::2] == [CrashPoint(before.replace("before", "after")) for before in writes.points[::2]]
    assert set(writes.committed) == set(writes.points[::2]), "each name has its write"


@pytest.mark.parametrize("write", ["commit", "fsync"])
def test_a_new_write_without_crash_points_is_noticed(tmp_path, monkeypatch, write):
    writes = Writes(tmp_path, monkeypatch)
    if write == "commit":
        writes.budget.database._connection.execute("DELETE FROM attempts")
    else:
        with (tmp_path / "other").open("wb") as file:
            os.fsync(file.fileno())
    assert writes.outside


def fill(budget):
    """No page more may be written, as on a full disk."""
    joined(budget, OTHER)
    ((pages,),) = budget.database._connection.execute("PRAGMA page_count").fetchall()
    budget.database._connection.execute(f"PRAGMA max_page_count = {pages}")
    attempt = budget.last_attempt(OTHER)
    with pytest.raises(StorageError, match="full"):
        while True:
            attempt += 1
            budget.begin(OTHER, attempt)


def test_on_a_full_disk_no_attempt_begins_and_none_is_paid_for(tmp_path):
    budget = joined(SiteState.open(tmp_path), STUDY)
    budget.begin(STUDY, 1)
    fill(budget)
    last = budget.last_attempt(OTHER)
    with pytest.raises(StorageError):
        budget.begin(OTHER, last + 1)
    with pytest.raises(StorageError):
        budget.charge(STUDY, 1, {f"site-{i}" * 8: 1 for i in range(500)})
    with pytest.raises(StorageError):
        Reservations(budget.database).register(Asset.synthetic("more" * 2000))
    assert (budget.last_attempt(OTHER), budget.charges(STUDY)) == (last, 0)


def test_a_site_that_cannot_write_says_so_and_stays_out(tmp_path):
    federation = Federation(
        study=small_study(),
        dimension=7,
        release=lambda manifest, site: lambda adapter, mechanism: pytest.fail("it stays out"),
        state=lambda site: SiteState.open(tmp_path / site),
    )
    fill(federation.workers["site-2"]._state)
    message = federation.attempt().messages()["site-2"]
    answer = Envelope.parse(federation.workers["site-2"].handle(message))
    assert Refusal.of(answer).code == RefusalCode.STORAGE


def test_an_adapter_that_is_longer_than_sqlite_lets_a_row_be_is_held_and_replaced():
    budget = joined(SiteState.in_memory(), STUDY, OTHER)
    budget.database._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 3 << 19)
    long, short = bytes(range(256)) * 7000, b"short"
    budget.begin(OTHER, 1, adapter=(0, short, b""))
    for serial, (adapter, optimizer) in enumerate([(long, long[1:]), (short, long), (long, b"")], start=1):
        budget.begin(STUDY, serial, adapter=(serial, adapter, optimizer))
        assert (budget.adapter_round(STUDY), budget.adapter(STUDY)) == (serial, (adapter, optimizer))
    assert (budget.adapter_round(OTHER), budget.adapter(OTHER)) == (0, (short, b""))
