"""A simulation that is killed at one of its writes, goes on, and is held against what it had written by then.

``python tests/killed_simulation.py`` kills it at every one, and each time once more in the middle of going on
(``make soak``).
"""

import fcntl
import os
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from grandrounds.client.budget import Budget
from grandrounds.client.site_database import SiteDatabase
from grandrounds.common import entries
from grandrounds.common.audit import Audit
from grandrounds.common.identity import Envelope
from grandrounds.common.ledger import EntryType
from grandrounds.common.study import Study, validated
from grandrounds.deploy.evidence import LEDGER, STUDY
from grandrounds.deploy.outages import Dropout
from grandrounds.deploy.simulate import Result, resume, simulate
from grandrounds.deploy.verify import Status, verify

torch.set_num_threads(1)  # a child has none of its parent's threads, and would wait for them

KILLED, FAILED = 9, 1
SITES = ("north", "south", "west")
ROUNDS = 2
# All three sites are needed, so that the dropout costs an attempt. A kill costs one more at most; two kills are tried.
DROPOUTS = (Dropout(site="south", round=1),)
ATTEMPTS = ROUNDS + len(DROPOUTS)
STUDY_OF_SITES = validated(
    Study,
    {
        "model": {"name": "tiny"},
        "data": {"max_tokens": 16},
        "privacy": {"noise_multiplier": 8.0, "sampling_probability": 1.0},
        "training": {"rounds": ROUNDS, "max_attempts": ATTEMPTS + 2},
        "sites": [{"name": site, "nominal_units": 20} for site in SITES],
    },
)
RECORDS = [{"patient_id": number, "text": "no complaints"} for number in range(2)]
COHORTS = dict.fromkeys(SITES, RECORDS)


def begin(folder: Path, **options: Any) -> Result:
    """The study from its beginning to its end."""
    return simulate(STUDY_OF_SITES, COHORTS, evaluation=RECORDS, output=folder, dropouts=DROPOUTS, **options)


def go_on(folder: Path, **options: Any) -> Result:
    """The study from where it is to its end."""
    return resume(folder, COHORTS, evaluation=RECORDS, dropouts=DROPOUTS, **options)


class Writes:
    """Counts the places at which a process may die, and dies at number ``last``.

    They are those before and after each fsync, and the sites' crash points, between which SQLite writes. A death before
    an fsync takes the last byte of that file along, as that of a machine may.
    """

    def __init__(self, last: int = 0) -> None:
        self.reached = 0
        self._last = last

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What happens inside is counted."""
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            if self.reached + 1 == self._last and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - 1))
            self._reach()
            fsync(descriptor)
            self._reach()

        with (
            patch.object(os, "fsync", counted_fsync),
            patch.object(Budget, "open", partial(Budget.open, reach=self._reach)),
        ):
            yield

    def _reach(self, *_: object) -> None:
        self.reached += 1
        if self.reached == self._last:
            os._exit(KILLED)


def in_child(action: Callable[[], object], *, dies_at: int = 0) -> int:
    """The exit status of a process of its own that does this, and dies at the place ``dies_at`` unless it is 0."""
    child = os.fork()
    if not child:
        status = FAILED
        try:
            with Writes(dies_at).counted():
                action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is on disk of a study: the ledger's whole entries, and by site its serials, with whether it paid."""

    ledger: bytes
    attempts: dict[str, dict[int, bool]]

    @classmethod
    def by(cls, folder: Path) -> "Left":
        """As it is in ``folder``."""
        ledger = (folder / LEDGER).read_bytes() if (folder / LEDGER).exists() else b""
        return cls(
            ledger=ledger[: ledger.rfind(b"\n") + 1],
            attempts={site: _attempts(folder / "sites" / site) for site in SITES},
        )

    @property
    def lines(self) -> list[bytes]:
        """The ledger's entries."""
        return self.ledger.splitlines()

    def is_kept_by(self, later: "Left") -> bool:
        """Whether no entry, serial or charge of this is missing in what was left later."""
        return later.ledger.startswith(self.ledger) and all(
            later.attempts[site].get(attempt, False) >= paid
            for site, attempts in self.attempts.items()
            for attempt, paid in attempts.items()
        )


def _attempts(state: Path) -> dict[int, bool]:
    if not (state / "budget.sqlite").exists():
        return {}
    database = SiteDatabase.open(state)
    try:
        rows = database.rows("SELECT attempt, charged FROM attempts")
    finally:
        database.close()
    return {attempt: bool(charged) for attempt, charged in rows}


def killed(folder: Path, *places: int) -> list[Left]:
    """Begin a study and kill it at the first place, then go on and kill that at the next …; what was left each time."""
    left = []
    for number, place in enumerate(places):
        status = in_child(partial(go_on if number else begin, folder), dies_at=place)
        if status == 0:
            break
        assert status == KILLED, f"it failed on the way to {places[: number + 1]}"
        left.append(Left.by(folder))
        if not (folder / STUDY).exists():
            break
    return left


def check(folder: Path, kills: Sequence[Left]) -> None:
    """Go on to the end. Fails unless everything is in order then, and nothing is lost but an attempt for each kill."""
    if not (folder / STUDY).exists():
        assert not (folder / LEDGER).exists(), "no site signed"
        assert not (folder / "sites").exists(), "no site paid"
        return
    assert in_child(partial(go_on, folder)) == 0, "it goes on"
    end = Left.by(folder)
    for before, after in zip(kills, [*kills[1:], end], strict=True):
        assert before.is_kept_by(after), "what was written stays"
    audit = Audit.of(end.lines)
    assert audit.closing_signatures == set(SITES)
    assert len(audit.rounds) == ROUNDS
    assert len(audit.attempts) <= ATTEMPTS + len(kills), "a kill costs an attempt at most"
    begun = {record.attempt for record in audit.attempts}
    for site, attempts in end.attempts.items():
        paid = {attempt for attempt, charged in attempts.items() if charged}
        possible = {record.attempt for record in audit.attempts if record.may_have_charged(site)}
        assert answered_by(site, end.lines) <= paid <= possible, f"{site} paid for what it answered, and for no more"
        assert attempts.keys() <= begun
        assert audit.charges[site] <= len(paid)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")], "nothing half written is left"
    verdict = verify(folder, manifest_hash=audit.manifest.sha256)
    assert {finding.status for finding in verdict.findings} == {Status.AGREES}, verdict


def answered_by(site: str, lines: Sequence[bytes]) -> set[int]:
    """The attempts in which the ledger has an update of the site."""
    ended = [
        entries.AttemptEnded.of(entry) for entry in Audit.of(lines).ledger if entry.type is EntryType.ATTEMPT_ENDED
    ]
    return {
        attempt.attempt
        for attempt in ended
        for signed in attempt.masked_inputs
        if Envelope.of_statement(signed.statement).sender == site
    }


def main() -> int:
    """Kill at every place, and at a random one of what is left to do then; 1 at the first that goes wrong."""
    with tempfile.TemporaryDirectory() as name:
        writes = Writes()
        with writes.counted():
            begin(Path(name) / "whole")
        for place in range(1, writes.reached + 1):
            places = (place, 1 + secrets.randbelow(writes.reached + 1 - place))
            folder = Path(name) / str(place)
            try:
                check(folder, killed(folder, *places))
            except AssertionError as error:
                print(f"killed at {places} of {writes.reached}: {error}", file=sys.stderr)
                return 1
    print(f"killed at each of {writes.reached} places")
    return 0


if __name__ == "__main__":
    sys.exit(main())
