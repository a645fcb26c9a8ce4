"""The database of a site: what it survives, what it refuses, and that processes do not tread on each other."""

import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import pytest

from grandrounds.client.state.database import DATABASE, SiteDatabase
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import StorageError
from grandrounds.common.system.crash_points import CrashPoint

LEDGER = (CrashPoint.BEFORE_LEDGER, CrashPoint.AFTER_LEDGER)


def add(database, *entries):
    with database.write(*LEDGER):
        database.change_many("INSERT INTO ledger VALUES ('study', ?, ?)", list(enumerate(entries)))


def entries_in(database):
    return [entry for (entry,) in database.rows("SELECT entry FROM ledger ORDER BY sequence")]


def test_a_commit_survives_the_loss_of_power(tmp_path):
    database = SiteDatabase.open(tmp_path)
    ((synchronous,),) = database._connection.execute("PRAGMA synchronous").fetchall()
    ((mode,),) = database._connection.execute("PRAGMA journal_mode").fetchall()
    assert (synchronous, mode) == (3, "delete"), "in rollback mode only EXTRA syncs the folder after a commit"


DIE_INSIDE = """
import os, sys
from pathlib import Path
from grandrounds.client.state.database import SiteDatabase
from grandrounds.common.system.crash_points import CrashPoint
database = SiteDatabase.open(Path(sys.argv[1]))
with database.write(CrashPoint.BEFORE_LEDGER, CrashPoint.AFTER_LEDGER):
    database.change("DELETE FROM ledger")
    database._connection.execute("PRAGMA cache_spill = 1")
    database.change_many("INSERT INTO ledger VALUES (?, ?, ?)", [("study", i, bytes(100_000)) for i in range(100)])
    os._exit(9)
"""


def test_a_process_killed_inside_a_write_leaves_it_undone(tmp_path):
    database = SiteDatabase.open(tmp_path)
    add(database, b"one", b"two")
    assert subprocess.run([sys.executable, "-c", DIE_INSIDE, str(tmp_path)]).returncode == 9
    assert (tmp_path / "budget.sqlite-journal").stat().st_size > 0, "it had begun to change the file"
    assert entries_in(database) == [b"one", b"two"]


def test_an_error_inside_a_write_undoes_it():
    database = SiteDatabase.in_memory()
    with pytest.raises(ZeroDivisionError), database.write(*LEDGER):
        database.change("INSERT INTO ledger VALUES ('study', 0, ?)", b"entry")
        _ = 1 / 0
    assert entries_in(database) == []
    add(database, b"entry")


def test_many_may_make_the_state_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        databases = list(pool.map(SiteDatabase.open, [tmp_path / "state"] * 8))
    add(databases[0], b"entry")
    assert [entries_in(database) for database in databases] == [[b"entry"]] * 8


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_damaged_state_is_refused_and_an_empty_one_is_new(tmp_path, content):
    (tmp_path / DATABASE).write_bytes(content)
    if content:
        with pytest.raises(StorageError, match="cannot be read"):
            SiteDatabase.open(tmp_path)
    else:
        assert entries_in(SiteDatabase.open(tmp_path)) == []


@pytest.mark.parametrize("version", [1, 99])
def test_a_state_of_a_form_that_is_not_known_is_refused_and_left_as_it_is(tmp_path, version):
    database = SiteDatabase.open(tmp_path)
    add(database, b"entry")
    database._connection.execute(f"PRAGMA user_version = {version}")
    database.close()
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(StorageError, match=f"version {version}") as refused:
        SiteDatabase.open(tmp_path)
    assert "keep the file" in refused.value.fix and (tmp_path / DATABASE).read_bytes() == before


# As programs before version 3 made and filled it: an adapter and what its optimiser remembers in one row.
VERSION_2 = """
BEGIN;
CREATE TABLE assets (
    name TEXT PRIMARY KEY, unit TEXT NOT NULL, filter TEXT NOT NULL, epsilon INTEGER NOT NULL,
    delta INTEGER NOT NULL, rdp INTEGER NOT NULL, rdp_order INTEGER) STRICT;
CREATE TABLE reservations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL UNIQUE, asset TEXT NOT NULL,
    epsilon INTEGER NOT NULL, delta INTEGER NOT NULL, rdp INTEGER NOT NULL, schedule TEXT NOT NULL) STRICT;
CREATE TABLE signed (
    study TEXT NOT NULL, version INTEGER NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (study, version)) STRICT;
CREATE TABLE attempts (
    study TEXT NOT NULL, attempt INTEGER NOT NULL CHECK (attempt > 0), charged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, attempt)) STRICT;
CREATE TABLE peers (
    study TEXT NOT NULL, site TEXT NOT NULL, charges INTEGER NOT NULL, PRIMARY KEY (study, site)) STRICT;
CREATE TABLE ledger (
    study TEXT NOT NULL, sequence INTEGER NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (study, sequence)) STRICT;
CREATE TABLE adapters (
    study TEXT PRIMARY KEY, round INTEGER NOT NULL, adapter BLOB NOT NULL, optimizer BLOB NOT NULL) STRICT;
CREATE TABLE peer_reservations (
    key TEXT NOT NULL, number INTEGER NOT NULL, study TEXT NOT NULL, PRIMARY KEY (key, number)) STRICT;
CREATE TABLE patients (fingerprint BLOB PRIMARY KEY, asset TEXT NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
INSERT INTO assets VALUES ('notes', 'patient', 'pure', 9, 8, 7, NULL);
INSERT INTO reservations VALUES (6, 'gone', 'notes', 1, 1, 1, '{}'), (7, 'study', 'notes', 3, 2, 1, '{}');
DELETE FROM reservations WHERE number = 6;
INSERT INTO signed VALUES ('study', 1, 'hash');
INSERT INTO attempts VALUES ('study', 1, 1), ('study', 2, 0), ('study', 3, 1);
INSERT INTO peers VALUES ('study', 'north', 2);
INSERT INTO ledger VALUES ('study', 0, x'01'), ('study', 1, x'02');
INSERT INTO peer_reservations VALUES ('key', 4, 'study');
INSERT INTO patients VALUES (x'0a', 'notes');
COMMIT;
"""
FORMS = "SELECT name, sql FROM sqlite_master ORDER BY name"
HELD = random.Random(3).randbytes(200_000)


@pytest.fixture
def older(tmp_path):
    """A folder with a state of version 2, and what it remembers besides adapters."""
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.executescript(VERSION_2)
        connection.execute("INSERT INTO adapters VALUES ('study', 2, ?, x''), ('other', 0, x'07', ?)", (HELD, HELD))
        return tmp_path, remembered(connection)


def remembered(connection):
    """All rows but of adapters, and which number was given last."""
    return sorted(row for row in connection.iterdump() if row.startswith("INSERT") and '"adapter' not in row)


def test_a_state_of_version_2_goes_on_with_all_that_was_spent_and_held(older):
    folder, rows = older
    with closing(SiteDatabase.open(folder)) as database, closing(SiteDatabase.in_memory()) as new:
        assert remembered(database._connection) == rows
        forms = [[(name, " ".join((sql or "").split())) for name, sql in each.rows(FORMS)] for each in (database, new)]
        assert forms[0] == forms[1], "it has the form of a new one"
        state = SiteState(database)
        assert (state.charges("study"), state.last_attempt("study"), state.reservation("study")) == (2, 3, 7)
        assert (state.adapter_round("study"), state.adapter("study")) == (2, (HELD, b""))
        assert (state.adapter_round("other"), state.adapter("other")) == (0, (b"\x07", HELD))
        database.change("DELETE FROM reservations")
        database.change("INSERT INTO reservations VALUES (NULL, 'next', 'notes', 0, 0, 0, '{}')")
        assert state.reservation("next") == 8, "no number is given twice"


def test_a_program_that_dies_while_a_state_takes_the_new_form_leaves_the_old_one(older, monkeypatch):
    folder, rows = older
    with monkeypatch.context() as dying:
        dying.setattr(SiteDatabase, "write_pieces", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            SiteDatabase.open(folder)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(2,)]
        assert remembered(connection) == rows
        assert connection.execute("SELECT adapter FROM adapters WHERE study = 'study'").fetchall() == [(HELD,)]
    with closing(SiteDatabase.open(folder)) as database:
        assert SiteState(database).adapter("study") == (HELD, b"")


@pytest.mark.parametrize("piece", [0, 1, 3])
def test_an_adapter_of_which_a_piece_is_missing_is_none(older, piece):
    with closing(SiteDatabase.open(older[0])) as database:
        database.change("DELETE FROM adapter_pieces WHERE study = 'study' AND number = ?", piece)
        missing = pytest.raises(StorageError, match=f"piece {piece} .* is missing")
        with missing if piece < 3 else nullcontext():  # that the last one is missing shows by the adapter's hash
            SiteState(database).adapter("study")


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot hold"):
        SiteDatabase.open(tmp_path / "file")


def test_the_state_is_for_its_owner_only(tmp_path):
    SiteDatabase.open(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_a_state_that_is_not_there_is_not_made_by_looking(tmp_path):
    with pytest.raises(StorageError, match="holds no site's state"):
        SiteDatabase.open_existing(tmp_path)
    assert list(tmp_path.iterdir()) == []
