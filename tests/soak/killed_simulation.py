"""A simulation that is killed at one of its writes, goes on, and is held against what it had written by then.

``python -m soak.killed_simulation`` kills it at every one, and each time once more in the middle of going on
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
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.ledger.left_on_disk import Left, check_kept

from grandrounds.client.state.site_state import SiteState
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.schema import validated
from grandrounds.common.study.artefacts import LEDGER
from grandrounds.common.study.artefacts import MANIFEST as STUDY
from grandrounds.common.study.study import Study
from grandrounds.deploy.simulation.outages import Dropout
from grandrounds.deploy.simulation.simulate import Result, resume, simulate
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status

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
        "data": {"max_tokens": 16, "evaluation": "synthetic"},
        "privacy": {"noise_multiplier": 8.0, "sampling_probability": 1.0, "clipping": "auto"},
        # All that a step can remember has to be there after a kill.
        "training": {"rounds": ROUNDS, "max_attempts": ATTEMPTS + 2, "noise_correction": "tensor"}
        | {"averaging": "mean", "averaged_rounds": ROUNDS},
        "sites": [{"name": site, "nominal_units": 20} for site in SITES],
    },
)
RECORDS = [{"patient_id": number, "text": "no complaints"} for number in range(2)]
COHORTS = dict.fromkeys(SITES, RECORDS)
HELD_OUT = [{"patient_id": "nobody", "text": "well rested"}]


def begin(folder: Path, **options: Any) -> Result:
    """The study from its beginning to its end."""
    return simulate(STUDY_OF_SITES, COHORTS, evaluation=HELD_OUT, output=folder, dropouts=DROPOUTS, **options)


def go_on(folder: Path, **options: Any) -> Result:
    """The study from where it is to its end."""
    return resume(folder, COHORTS, evaluation=HELD_OUT, dropouts=DROPOUTS, **options)


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
            patch.object(SiteState, "open", partial(SiteState.open, reach=self._reach)),
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


def left_in(folder: Path) -> Left:
    """What is on disk of the study in ``folder``."""
    return Left.by(folder / LEDGER, {site: folder / "sites" / site for site in SITES})


def killed(folder: Path, *places: int) -> list[Left]:
    """Begin a study and kill it at the first place, then go on and kill that at the next …; what was left each time."""
    left = []
    for number, place in enumerate(places):
        status = in_child(partial(go_on if number else begin, folder), dies_at=place)
        if status == 0:
            break
        assert status == KILLED, f"it failed on the way to {places[: number + 1]}"
        left.append(left_in(folder))
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
    end = left_in(folder)
    check_kept([*kills, end])
    verified = VerifiedLedger.of(end.lines)
    assert verified.closing_signatures == set(SITES)
    assert len(verified.rounds) == ROUNDS
    assert len(verified.attempts) <= ATTEMPTS + len(kills), "a kill costs an attempt at most"
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")], "nothing half written is left"
    verdict = verify(folder, manifest_hash=verified.manifest.sha256)
    assert {finding.status for finding in verdict.findings if finding.name not in ("audit", "attacks")} == {
        Status.AGREES
    }, verdict


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
