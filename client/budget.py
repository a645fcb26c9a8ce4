"""A site's durable memory of its attempts: which it began, which it paid for, and what its peers had paid."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..common.crash_points import CrashPoint, Reach, carry_on
from ..common.errors import ProtocolError, StorageError
from ..common.files import make_folder

DATABASE = "budget.sqlite"
LOCK = "worker.lock"
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE attempts (
        study TEXT NOT NULL, attempt INTEGER NOT NULL CHECK (attempt > 0), charged INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (study, attempt)) STRICT""",
    """CREATE TABLE peers (
        study TEXT NOT NULL, site TEXT NOT NULL, charges INTEGER NOT NULL, PRIMARY KEY (study, site)) STRICT""",
    f"PRAGMA user_version = {_VERSION}",
)


class Budget:
    """What a site began and paid for, by study (a manifest's hash).

    A write has reached the disk when its method returns: SQLite with ``synchronous=EXTRA``, since in rollback mode
    FULL leaves a commit's last step, the removal of the journal, to the operating system. A crash during a write
    leaves it undone or done, never half. Nothing here is a secret, and nothing depends on records.
    """

    def __init__(self, connection: sqlite3.Connection, *, reach: Reach = carry_on, lock: int | None = None) -> None:
        """``connection`` in autocommit mode; ``lock`` is a descriptor to close at the end. Raises StorageError."""
        self._connection = connection
        self._reach = reach
        self._lock = lock
        with _storage_errors():
            connection.execute("PRAGMA synchronous = EXTRA")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StorageError(
                f"the site's state has version {version}, this program writes {_VERSION}",
                why="what was spent could be misread",
                fix="run the version of the program that wrote it, or a later one",
            )
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA:
                    connection.execute(statement)

    @classmethod
    def open(cls, folder: Path, *, reach: Reach = carry_on) -> "Budget":
        """The state in ``folder``, for this worker alone until it closes or dies. Raises StorageError."""
        reach(CrashPoint.BEFORE_STATE)
        try:
            make_folder(folder)
            folder.chmod(0o700)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(folder, error.strerror) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"another worker holds {folder}",
                    why="two workers of one site could each answer in the same attempt, and together reveal its update",
                    fix="stop the other worker, or give this one its own site, key and folder",
                ) from error
            except OSError as error:
                raise _unusable(folder, error.strerror) from error
            with _storage_errors():
                connection = sqlite3.connect(folder / DATABASE, isolation_level=None, check_same_thread=False)
            budget = cls(connection, reach=reach, lock=lock)
        except BaseException:
            os.close(lock)
            raise
        reach(CrashPoint.AFTER_STATE)
        return budget

    @classmethod
    def in_memory(cls) -> "Budget":
        """A state that ends with the process: for a federation of which nothing is kept."""
        return cls(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))

    def close(self) -> None:
        """Give the folder free."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def last_attempt(self, study: str) -> int:
        """The highest serial that this site began, 0 for none."""
        return self._integer("SELECT coalesce(max(attempt), 0) FROM attempts WHERE study = ?", study)

    def charges(self, study: str) -> int:
        """How many attempts this site paid for: its charge counter."""
        return self._integer("SELECT count(*) FROM attempts WHERE study = ? AND charged", study)

    def is_charged(self, study: str, attempt: int) -> bool:
        """Whether this site paid for ``attempt``."""
        with _storage_errors():
            row = self._connection.execute(
                "SELECT 1 FROM attempts WHERE study = ? AND attempt = ? AND charged", (study, attempt)
            )
            return row.fetchone() is not None

    def peer_charges(self, study: str) -> dict[str, int]:
        """The highest charge counter that each peer advertised in an attempt that this site paid for."""
        with _storage_errors():
            rows = self._connection.execute("SELECT site, charges FROM peers WHERE study = ?", (study,))
            return dict(rows.fetchall())

    def begin(self, study: str, attempt: int) -> None:
        """Take the serial ``attempt``, on disk before it returns.

        Raises ProtocolError unless it is above every serial taken before, and StorageError.
        """
        with self._write(CrashPoint.BEFORE_SERIAL, CrashPoint.AFTER_SERIAL):
            if attempt <= self.last_attempt(study):
                raise _taken(attempt)
            self._connection.execute("INSERT INTO attempts (study, attempt) VALUES (?, ?)", (study, attempt))

    def charge(self, study: str, attempt: int, peer_charges: Mapping[str, int]) -> int:
        """Pay for the attempt that was begun last, on disk before it returns; the new charge counter.

        Raises ProtocolError if it is another or was paid for, and StorageError.
        """
        with self._write(CrashPoint.BEFORE_CHARGE, CrashPoint.AFTER_CHARGE):
            paid = self._connection.execute(
                "UPDATE attempts SET charged = 1 WHERE study = ? AND attempt = ? AND NOT charged AND attempt = ?",
                (study, attempt, self.last_attempt(study)),
            )
            if paid.rowcount != 1:
                raise _taken(attempt)
            self._connection.executemany(
                "INSERT INTO peers VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET charges = max(charges, excluded.charges)",
                [(study, site, charges) for site, charges in peer_charges.items()],
            )
        return self.charges(study)

    @contextmanager
    def _write(self, before: CrashPoint, after: CrashPoint) -> Iterator[None]:
        self._reach(before)
        with self._transaction():
            yield
        self._reach(after)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing: whatever is raised inside undoes it."""
        with _storage_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _integer(self, query: str, study: str) -> int:
        with _storage_errors():
            (value,) = self._connection.execute(query, (study,)).fetchone()
        return int(value)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            f"the site's state cannot be read or written ({error})",
            why="an attempt may begin, and records may be read, only once that is on disk",
            fix="free space or repair the disk; never put back an older copy, which would forget what was spent",
        ) from error


def _unusable(folder: Path, reason: str | None) -> StorageError:
    return StorageError(
        f"{folder} cannot hold the site's state: {reason}",
        why="what the site spends is recorded there before it spends it",
        fix="give a folder on a local disk that the worker's user can write",
    )


def _taken(attempt: int) -> ProtocolError:
    return ProtocolError(
        f"attempt {attempt} was begun or paid for before",
        why="a second answer in one attempt could reveal the site's update",
        fix="begin a new attempt; the server's serials must only grow",
    )
