"""What is on disk of a study at a moment: its ledger, and what each site began and paid for."""

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grandrounds.client.state.database import DATABASE
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import EntryType
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope


@dataclass(frozen=True, kw_only=True)
class Left:
    """The ledger's whole entries, and by site its serials, with whether it paid."""

    ledger: bytes
    attempts: dict[str, dict[int, bool]]

    @classmethod
    def by(cls, ledger: Path, states: Mapping[str, Path]) -> "Left":
        """As it is in the file ``ledger``, and in the sites' folders ``states``."""
        found = ledger.read_bytes() if ledger.exists() else b""
        return cls(
            ledger=found[: found.rfind(b"\n") + 1], attempts={site: _attempts(state) for site, state in states.items()}
        )

    @property
    def lines(self) -> list[bytes]:
        """The ledger's entries."""
        return self.ledger.splitlines()

    def paid(self, site: str) -> set[int]:
        """The attempts that the site paid for."""
        return {attempt for attempt, charged in self.attempts[site].items() if charged}

    def is_kept_by(self, later: "Left") -> bool:
        """Whether no entry, serial or charge of this is missing in what was left later."""
        return later.ledger.startswith(self.ledger) and all(
            later.attempts[site].get(attempt, False) >= paid
            for site, attempts in self.attempts.items()
            for attempt, paid in attempts.items()
        )


def check_kept(moments: Sequence[Left]) -> None:
    """Fails unless each moment has all that was on disk at the one before, and no charge of the last is lost or twice.

    A site has paid for every update of its that the ledger has, at most once an attempt, and for no attempt in which
    the ledger leaves no room for it.
    """
    for before, after in itertools.pairwise(moments):
        assert before.is_kept_by(after), "what was written stays"
    end = moments[-1]
    verified = VerifiedLedger.of(end.lines)
    for site, attempts in end.attempts.items():
        paid = end.paid(site)
        possible = {record.attempt for record in verified.attempts if record.may_have_charged(site)}
        assert _answered(site, verified) <= paid <= possible, f"{site} paid for what it answered, and for no more"
        assert attempts.keys() <= {record.attempt for record in verified.attempts}
        assert verified.charges.get(site, 0) <= len(paid) <= verified.most_charges(site), (
            f"no charge of {site} is doubled"
        )


def _answered(site: str, verified: VerifiedLedger) -> set[int]:
    """The attempts in which the ledger has an update of the site."""
    ended = [entries.AttemptEnded.of(entry) for entry in verified.ledger if entry.type is EntryType.ATTEMPT_ENDED]
    return {
        attempt.attempt
        for attempt in ended
        for signed in attempt.masked_inputs
        if Envelope.of_statement(signed.statement).sender == site
    }


def rows(state: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in a site's state; nothing where that was never written."""
    if not (state / DATABASE).exists():
        return []
    database = sqlite3.connect(state / DATABASE, timeout=30)
    try:
        written = database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'attempts'").fetchone()
        return database.execute(query).fetchall() if written else []
    finally:
        database.close()


def _attempts(state: Path) -> dict[int, bool]:
    return {int(attempt): bool(charged) for attempt, charged in rows(state, "SELECT attempt, charged FROM attempts")}
