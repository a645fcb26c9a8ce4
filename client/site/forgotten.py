"""Patients who are forgotten: prepared records are rewritten without them, and they are known by fingerprints alone."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ...common.data.store import Store
from ...common.errors import StorageError, reason
from ...common.system.files import fsync, make_private_folder, write_atomically
from ...common.system.locks import in_turn
from ..budget.patients import FingerprintKey
from .opt_outs import OptOuts
from .prepared import FOUND, lock_of, places, rewritten

_FILE: Final = "forgotten.json"


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Whose records were once prepared in a folder and no longer are: without it, their opt-outs would match nobody."""

    key: FingerprintKey
    fingerprints: frozenset[str]

    @classmethod
    def read(cls, folder: Path, key: FingerprintKey) -> Self:
        """Of the folder of what is prepared; nobody where there is no file. Raises StorageError."""
        try:
            return cls(key=key, fingerprints=frozenset(json.loads((folder / _FILE).read_bytes())))
        except FileNotFoundError:
            return cls(key=key, fingerprints=frozenset())
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(
                f"{folder / _FILE} is damaged or cannot be read ({reason(error)})",
                why="it says whose opt-outs were carried out already",
                fix="remove it: lines of the opt-outs may then be said to match nobody",
            ) from error

    def unmatched(self, opt_outs: OptOuts, patients: Iterable[str]) -> list[int]:
        """The numbers of the lines that mean none of the ``patients`` and nobody who is forgotten."""
        return [line for line in opt_outs.unmatched(patients) if not self._knows(opt_outs.lines[line])]

    def and_(self, patients: Iterable[str]) -> Self:
        """With some more."""
        return type(self)(key=self.key, fingerprints=self.fingerprints | {self.key.of(one).hex() for one in patients})

    def _knows(self, forms: Iterable[str]) -> bool:
        return bool(self.fingerprints) and any(self.key.of(form).hex() in self.fingerprints for form in forms)

    def write(self, folder: Path) -> None:
        """For the folder's owner alone. Raises StorageError."""
        write_atomically(folder / _FILE, json.dumps(sorted(self.fingerprints)).encode(), mode=0o600)


def forget(folder: Path, opt_outs: OptOuts, key: FingerprintKey) -> tuple[int, list[int]]:
    """Rewrite all that is prepared in ``folder`` without who opted out.

    How many patients these were, and the numbers of the lines that mean nobody, now or before. What an interrupted
    preparation left is removed whole. A worker that has records mapped keeps them until it ends. Done again, it goes on
    where it was interrupted. Raises StorageError.
    """
    seen, gone = set[str](), set[str]()
    for place in places(folder):
        with in_turn(lock_of(place)):
            try:
                patients, opted_out = _rewrite(place, opt_outs.patients, key)
            except OSError as error:
                raise StorageError(
                    f"{place} cannot be rewritten ({reason(error)})",
                    why="who opted out is still among the prepared records there, though no study reads them",
                    fix="free space there, and repeat the command",
                ) from error
        seen |= patients
        gone |= opted_out
    forgotten = Forgotten.read(folder, key)
    return len(gone), forgotten.unmatched(opt_outs, seen)


def _rewrite(place: Path, opted_out: frozenset[str], key: FingerprintKey) -> tuple[set[str], set[str]]:
    """What all patients that were there are known by, and those patients who are no longer."""
    fresh = rewritten(place)
    shutil.rmtree(fresh, ignore_errors=True)
    if not (place / FOUND).exists():
        shutil.rmtree(place, ignore_errors=True)
        return set(), set()
    store = Store.open(place)
    kept = store.kept(opted_out)
    left = {store.patients[number] for number in kept.tolist()}
    patients = {one for patient in store.patients for one in store.identifiers(patient)}
    gone = set(store.patients) - left
    if not gone:
        return patients, gone
    known = (one for patient in gone for one in store.identifiers(patient))
    Forgotten.read(place.parent, key).and_(known).write(place.parent)
    if len(kept):
        make_private_folder(fresh)
        store.only(kept, fresh)
        found = json.loads((place / FOUND).read_bytes())
        # Places of records, and it is not known whose: what is prepared again lists them again.
        write_atomically(fresh / FOUND, json.dumps(found | {"set_aside": []}).encode(), mode=0o600)
    shutil.rmtree(place)  # mapped files are not written over: who reads them would read something else
    if len(kept):
        fresh.rename(place)
    fsync(place.parent)
    return patients, gone
