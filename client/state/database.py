"""The database of a site: its budgets, its attempts and its copy of each study's ledger, in one SQLite file."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from ...common.errors import StorageError
from ...common.system.content import BLOCK_BYTES, Content, Stored
from ...common.system.crash_points import CrashPoint, Reach, carry_on
from ...common.system.files import make_folder

DATABASE: Final = "budget.sqlite"
_CACHE_KIB: Final = 512  # of a database, of which a simulation has one for each of its sites
_PIECE_BYTES: Final = 1 << 16
_BUSY_S: Final = 30.0  # how long a write waits for another process's: theirs take milliseconds
_VERSION: Final = 3
# SQLite takes no row of 1 GB, which an adapter and what its optimiser remembers can exceed.
_ADAPTERS: Final = (
    "CREATE TABLE adapters (study TEXT PRIMARY KEY, round INTEGER NOT NULL) STRICT",
    """CREATE TABLE adapter_pieces (
        study TEXT NOT NULL, part TEXT NOT NULL, number INTEGER NOT NULL, piece BLOB NOT NULL,
        PRIMARY KEY (study, part, number)) STRICT""",
)
# Amounts of budget are whole trillionths, rounded against the spender.
_SCHEMA: Final = (
    """CREATE TABLE assets (
        name TEXT PRIMARY KEY, unit TEXT NOT NULL, filter TEXT NOT NULL, epsilon INTEGER NOT NULL,
        delta INTEGER NOT NULL, rdp INTEGER NOT NULL, rdp_order INTEGER) STRICT""",
    # A number is never given twice, not even after its reservation was given back (AUTOINCREMENT).
    """CREATE TABLE reservations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL UNIQUE, asset TEXT NOT NULL,
        epsilon INTEGER NOT NULL, delta INTEGER NOT NULL, rdp INTEGER NOT NULL, schedule TEXT NOT NULL) STRICT""",
    """CREATE TABLE signed (
        study TEXT NOT NULL, version INTEGER NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (study, version)) STRICT""",
    """CREATE TABLE attempts (
        study TEXT NOT NULL, attempt INTEGER NOT NULL CHECK (attempt > 0), charged INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (study, attempt)) STRICT""",
    """CREATE TABLE peers (
        study TEXT NOT NULL, site TEXT NOT NULL, charges INTEGER NOT NULL, PRIMARY KEY (study, site)) STRICT""",
    """CREATE TABLE ledger (
        study TEXT NOT NULL, sequence INTEGER NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (study, sequence)) STRICT""",
    *_ADAPTERS,
    """CREATE TABLE peer_reservations (
        key TEXT NOT NULL, number INTEGER NOT NULL, study TEXT NOT NULL, PRIMARY KEY (key, number)) STRICT""",
    """CREATE TABLE patients (fingerprint BLOB PRIMARY KEY, asset TEXT NOT NULL) STRICT, WITHOUT ROWID""",
    f"PRAGMA user_version = {_VERSION}",
)


class SiteDatabase:
    """One connection; several processes may each have one, and SQLite's transactions arbitrate between them.

    A write has reached the disk when ``write`` is left: ``synchronous=EXTRA``, since in rollback mode FULL leaves a
    commit's last step, the removal of the journal, to the operating system. A crash during a write leaves it undone
    or done, never half. Of records there are fingerprints of their patients, which say nothing without a key.
    """

    def __init__(self, connection: sqlite3.Connection, *, folder: Path | None = None, reach: Reach = carry_on) -> None:
        """``connection`` in autocommit mode, of a file in ``folder`` if it is of one. Raises StorageError."""
        self._connection = connection
        self._folder = folder
        self._reach = reach
        with storage_errors():
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if self._version in (0, 2):
            with self._transaction():
                match self._version:  # which another process may have raised meanwhile
                    case 0:
                        for statement in _SCHEMA:
                            connection.execute(statement)
                    case 2:
                        self._migrate_from_2()
        if self._version != _VERSION:
            raise StorageError(
                f"the site's state has version {self._version}, and this program reads 2 and {_VERSION}",
                why="what was spent could be misread",
                fix="run the program that wrote it, or a later one where its version is higher; keep the file: it has "
                "what each patient has left",
            )

    @classmethod
    def open(cls, folder: Path, *, reach: Reach = carry_on) -> "SiteDatabase":
        """The database in ``folder``, made where it is missing. Raises StorageError."""
        reach(CrashPoint.BEFORE_STATE)
        try:
            make_folder(folder)
            folder.chmod(0o700)
        except OSError as error:
            raise unusable(folder, error.strerror) from error
        with storage_errors():
            connection = sqlite3.connect(
                folder / DATABASE, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
            )
        try:
            database = cls(connection, folder=folder, reach=reach)
        except BaseException:
            connection.close()
            raise
        reach(CrashPoint.AFTER_STATE)
        return database

    @classmethod
    def open_existing(cls, folder: Path, *, reach: Reach = carry_on) -> "SiteDatabase":
        """The database that ``folder`` holds already. Raises StorageError."""
        if not cls.is_in(folder):
            raise StorageError(
                f"{folder} holds no site's state",
                why="budgets, reservations and charges are kept there, and a new one would forget what was spent",
                fix="mount or name the right folder; if the state is lost, say so, and start again with everything "
                "spent: grandrounds client recover",
            )
        return cls.open(folder, reach=reach)

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether ``folder`` has a database in which something was written. Raises StorageError if it is damaged."""
        path = folder / DATABASE
        if not path.is_file():
            return False
        with storage_errors(), closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
            ((version,),) = connection.execute("PRAGMA user_version").fetchall()
            return bool(version)  # none in a file that was cut to nothing

    @classmethod
    def in_memory(cls) -> "SiteDatabase":
        """A database that ends with the process; what is large in it SQLite keeps in a file that has no name."""
        return cls(sqlite3.connect("", isolation_level=None, check_same_thread=False))

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query, so that none keeps the file locked. Raises StorageError."""
        with storage_errors():
            return self._connection.execute(query, values).fetchall()

    def integer(self, query: str, *values: Any) -> int:
        """The one integer that a query is for. Raises StorageError."""
        ((value,),) = self.rows(query, *values)
        return int(value)

    def change(self, statement: str, *values: Any) -> int:
        """Change rows, inside ``write`` only; how many. Raises StorageError."""
        with storage_errors():
            return self._connection.execute(statement, values).rowcount

    def change_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """The same statement for each of ``rows``, inside ``write`` only. Raises StorageError."""
        with storage_errors():
            self._connection.executemany(statement, rows)

    def write_pieces(self, insert: str, *key: Any, data: Content | sqlite3.Blob) -> None:
        """A row for each piece of ``data``, with its number and itself after ``key``; inside ``write`` only."""
        for number, start in enumerate(range(0, len(data), _PIECE_BYTES)):
            self.change(insert, *key, number, data[start : start + _PIECE_BYTES])

    def read_pieces(self, query: str, *key: Any, size: int) -> Content:
        """What ``query`` gives by ``key`` and number, of ``size`` bytes; much of it in a ``nameless_file``.

        Row by row, so that nobody's write waits for the disk meanwhile. Raises StorageError, also where one lacks.
        """
        file, number = BytesIO() if size <= BLOCK_BYTES else self.nameless_file(), 0
        while found := self.rows(query, *key, number):
            ((piece,),) = found
            with storage_errors():
                file.write(piece)
            number += 1
        if file.tell() != size:
            raise StorageError(
                f"the site's state is damaged: piece {number} of what it holds of an adapter is missing",
                why="a site answers only for an adapter that it came to by itself",
                fix="check the disk. What was spent is in other rows: keep the file",
            )
        if isinstance(file, BytesIO):
            return file.getvalue()
        with storage_errors():
            file.flush()
        return Stored(file)

    def _migrate_from_2(self) -> None:
        """Version 2 had an adapter in one row. All else is as it was; whoever stops in between finds version 2."""
        self._connection.execute("ALTER TABLE adapters RENAME TO whole_adapters")
        for statement in _ADAPTERS:
            self._connection.execute(statement)
        self._connection.execute("INSERT INTO adapters SELECT study, round FROM whole_adapters")
        for row, study in self.rows("SELECT rowid, study FROM whole_adapters"):
            for part in ("adapter", "optimizer"):
                with self._connection.blobopen("whole_adapters", part, row, readonly=True) as whole:
                    self.write_pieces("INSERT INTO adapter_pieces VALUES (?, ?, ?, ?)", study, part, data=whole)
        self._connection.execute("DROP TABLE whole_adapters")
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def nameless_file(self) -> IO[bytes]:
        """A new file for what is too large for memory, on the database's disk until it is closed. Raises StorageError.

        Only this process has it; nothing of it is left, however the process ends.
        """
        with storage_errors():
            return TemporaryFile(dir=self._folder)

    @contextmanager
    def write(self, before: CrashPoint, after: CrashPoint) -> Iterator[None]:
        """A transaction between two crash points, alone among all processes: whatever is raised inside undoes it."""
        self._reach(before)
        with self.together():
            yield
        self._reach(after)

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that is written inside, or the one that this is in."""
        if self._connection.in_transaction:
            yield
            return
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with storage_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @property
    def _version(self) -> int:
        return self.integer("PRAGMA user_version")


def unusable(folder: Path, reason: str | None) -> StorageError:
    """The error of a folder that cannot hold the state."""
    return StorageError(
        f"{folder} cannot hold the site's state: {reason}",
        why="what the site spends is recorded there before it spends it",
        fix="give a folder on a local disk that the worker's user can write",
    )


@contextmanager
def storage_errors() -> Iterator[None]:
    """Errors of the database or of the disk below it become StorageError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"the site's state cannot be read or written ({error})",
            why="an attempt may begin, and records may be read, only once that is on disk",
            fix="free space or repair the disk; never put back an older copy, which would forget what was spent",
        ) from error
