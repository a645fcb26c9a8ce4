"""The database of a site: what it survives, what it refuses, and that processes do not tread on each other."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from grandrounds.client.state.database import DATABASE, SiteDatabase
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


def test_a_state_of_a_later_program_is_refused(tmp_path):
    database = SiteDatabase.open(tmp_path)
    database._connection.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="version 99"):
        SiteDatabase.open(tmp_path)


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
