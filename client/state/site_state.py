"""A site's durable memory of its attempts: which it began, which it paid for, what its peers had paid, the ledger."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ...common.errors import PrivacyError, ProtocolError, StorageError
from ...common.system.content import Content
from ...common.system.crash_points import CrashPoint, Reach, carry_on
from ...common.system.locks import alone
from .database import SiteDatabase

LOCK: Final = "worker.lock"
# A round, the adapter after it, and what its optimiser remembers.
AdapterRow = tuple[int, Content, Content]


class SiteState:
    """What a site began, paid for and was told, by study: ``study`` is the manifest's ``study_id``.

    Every change is on disk when its method returns (``SiteDatabase``). An attempt begins only where the whole study
    was reserved in the same database (``Reservations``).
    """

    def __init__(self, database: SiteDatabase, *, held: ExitStack | None = None) -> None:
        """``held`` is let go at the end."""
        self.database = database
        self._held = held or ExitStack()

    @classmethod
    def open(cls, folder: Path, *, reach: Reach = carry_on) -> "SiteState":
        """The state in ``folder``, made where it is missing, for this worker alone until it closes or dies.

        Raises StorageError.
        """
        return cls._held_in(folder, folder / LOCK, SiteDatabase.open(folder, reach=reach))

    @classmethod
    def open_existing(cls, folder: Path, *, lock: Path) -> "SiteState":
        """The state that ``folder`` holds already, beside the workers of other studies; ``lock`` is this one's.

        Raises StorageError.
        """
        return cls._held_in(folder, lock, SiteDatabase.open_existing(folder))

    @classmethod
    def _held_in(cls, folder: Path, lock: Path, database: SiteDatabase) -> "SiteState":
        try:
            held = ExitStack()
            held.enter_context(alone(lock, taken=_held_by_another(lock.parent)))
            return cls(database, held=held)
        except BaseException:
            database.close()
            raise

    @classmethod
    def in_memory(cls) -> "SiteState":
        """A state that ends with the process: for a federation of which nothing is kept."""
        return cls(SiteDatabase.in_memory())

    def close(self) -> None:
        """Give the folder free."""
        self.database.close()
        self._held.close()

    def last_attempt(self, study: str) -> int:
        """The highest serial that this site began, 0 for none."""
        return self.database.integer("SELECT coalesce(max(attempt), 0) FROM attempts WHERE study = ?", study)

    def charges(self, study: str) -> int:
        """How many attempts this site paid for: its charge counter."""
        return self.database.integer("SELECT count(*) FROM attempts WHERE study = ? AND charged", study)

    def is_charged(self, study: str, attempt: int) -> bool:
        """Whether this site paid for ``attempt``."""
        query = "SELECT 1 FROM attempts WHERE study = ? AND attempt = ? AND charged"
        return bool(self.database.rows(query, study, attempt))

    def reservation(self, study: str) -> int:
        """Which of all reservations that this site ever made is the study's, 0 for none."""
        return self.database.integer("SELECT coalesce(max(number), 0) FROM reservations WHERE study = ?", study)

    def study_of_peer(self, key: str, reservation: int) -> str | None:
        """The study in which the site of a key stated the ``reservation``, as far as this one knows."""
        query = "SELECT study FROM peer_reservations WHERE key = ? AND number = ?"
        return next((study for (study,) in self.database.rows(query, key, reservation)), None)

    def peer_charges(self, study: str) -> dict[str, int]:
        """The highest charge counter that each peer advertised in an attempt that this site paid for."""
        return dict(self.database.rows("SELECT site, charges FROM peers WHERE study = ?", study))

    def ledger(self, study: str) -> list[bytes]:
        """The entries of the study's ledger that this site holds, in order."""
        rows = self.database.rows("SELECT entry FROM ledger WHERE study = ? ORDER BY sequence", study)
        return [entry for (entry,) in rows]

    def adapter_round(self, study: str) -> int | None:
        """The round after which this site holds the adapter; None where it has none."""
        return next(
            (round_ for (round_,) in self.database.rows("SELECT round FROM adapters WHERE study = ?", study)), None
        )

    def adapter(self, study: str) -> tuple[Content, Content]:
        """The adapter that this site holds, and what its optimiser remembers. Raises StorageError."""
        return self._held_part(study, "adapter"), self._held_part(study, "optimizer")

    def begin(
        self,
        study: str,
        attempt: int,
        entries: Sequence[bytes] = (),
        *,
        adapter: AdapterRow | None = None,
        reservations: Mapping[str, int] = {},
    ) -> None:
        """Take the serial ``attempt``, append ledger ``entries``, and hold another ``adapter`` if one is given.

        All of it is on disk before it returns, or nothing.

        ``reservations`` are what sites stated in the study, by their keys.

        Raises PrivacyError unless the study was reserved, ProtocolError unless the serial is above every one taken
        before, and StorageError.
        """
        with self.database.write(CrashPoint.BEFORE_SERIAL, CrashPoint.AFTER_SERIAL):
            if not self.database.rows("SELECT 1 FROM reservations WHERE study = ?", study):
                raise PrivacyError(
                    f"no budget is reserved for study {study[:12]}",
                    why="what a study costs its patients is set aside in full before the first attempt",
                    fix="join the study first",
                )
            if attempt <= self.last_attempt(study):
                raise _taken(attempt)
            self.database.change("INSERT INTO attempts (study, attempt) VALUES (?, ?)", study, attempt)
            self._append(study, entries)
            if adapter is not None:
                self._hold(study, *adapter)
            self.database.change_many(
                "INSERT OR IGNORE INTO peer_reservations VALUES (?, ?, ?)",
                [(key, number, study) for key, number in reservations.items()],
            )

    def append(self, study: str, entries: Sequence[bytes]) -> None:
        """Append ledger ``entries``, on disk before it returns. Raises StorageError."""
        with self.database.write(CrashPoint.BEFORE_LEDGER, CrashPoint.AFTER_LEDGER):
            self._append(study, entries)

    def charge(self, study: str, attempt: int, peer_charges: Mapping[str, int]) -> int:
        """Pay for the attempt that was begun last, on disk before it returns; the new charge counter.

        Raises ProtocolError if it is another or was paid for, and StorageError.
        """
        with self.database.write(CrashPoint.BEFORE_CHARGE, CrashPoint.AFTER_CHARGE):
            paid = self.database.change(
                "UPDATE attempts SET charged = 1 WHERE study = ? AND attempt = ? AND NOT charged AND attempt = ?",
                study,
                attempt,
                self.last_attempt(study),
            )
            if paid != 1:
                raise _taken(attempt)
            self.database.change_many(
                "INSERT INTO peers VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET charges = max(charges, excluded.charges)",
                [(study, site, charges) for site, charges in peer_charges.items()],
            )
        return self.charges(study)

    def _hold(self, study: str, round_: int, adapter: Content, optimizer: Content) -> None:
        self.database.change("INSERT OR REPLACE INTO adapters VALUES (?, ?)", study, round_)
        self.database.change("DELETE FROM adapter_pieces WHERE study = ?", study)
        for part, content in (("adapter", adapter), ("optimizer", optimizer)):
            self.database.write_pieces("INSERT INTO adapter_pieces VALUES (?, ?, ?, ?)", study, part, data=content)

    def _held_part(self, study: str, part: str) -> Content:
        sizes = "SELECT coalesce(sum(length(piece)), 0) FROM adapter_pieces WHERE study = ? AND part = ?"
        one = "SELECT piece FROM adapter_pieces WHERE study = ? AND part = ? AND number = ?"
        return self.database.read_pieces(one, study, part, size=self.database.integer(sizes, study, part))

    def _append(self, study: str, entries: Sequence[bytes]) -> None:
        held = self.database.integer("SELECT count(*) FROM ledger WHERE study = ?", study)
        self.database.change_many(
            "INSERT INTO ledger VALUES (?, ?, ?)",
            [(study, sequence, entry) for sequence, entry in enumerate(entries, start=held)],
        )


def _held_by_another(folder: Path) -> StorageError:
    return StorageError(
        f"another worker holds {folder}",
        why="two workers of one site could each answer in the same attempt, and together reveal its update",
        fix="end the other worker first (`grandrounds client start`, or its service)",
    )


def _taken(attempt: int) -> ProtocolError:
    return ProtocolError(
        f"attempt {attempt} was begun or paid for before",
        why="a second answer in one attempt could reveal the site's update",
        fix="begin a new attempt; the server's serials must only grow",
    )
