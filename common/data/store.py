"""A site's records as tokens, ready to be drawn: flat arrays, and whose they are."""

import json
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, overload

import numpy as np

from ..errors import StorageError, reason
from ..model.example import Example
from ..sources.identifiers import canonical
from ..system.files import write_atomically
from .blocks import Block, Offsets, check_offsets, gathered, write_array
from .buckets import bucket_lengths

PrivacyUnit = Literal["patient", "record"]

_PATIENTS: Final = "patients.json"
_UNITS: Final = "units.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """All windows of all records of all patients, in an order that follows from what they say alone.

    Patients are in the order of their identifiers' canonical forms, a patient's records in that of their digests: the
    same records make the same arrays, wherever and in whatever order they were read.

    Attributes:
        block: the records' windows.
        units: int64 [patients + 1], where each patient's records begin.
        patients: whose they are.
        other_ids: further identifiers, of those patients who have some.
    """

    block: Block
    units: Offsets
    patients: Sequence[str]
    other_ids: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """The store in a folder; tokens are read as they are drawn. Raises StorageError.

        Its parts fit together: a store that is damaged as a whole would otherwise give units of which none can be read,
        and steps of pure noise that nobody hears of.
        """
        try:
            known = json.loads((folder / _PATIENTS).read_bytes())
            store = cls(
                block=Block.open(folder),
                units=np.load(folder / _UNITS, allow_pickle=False),
                patients=[patient for patient, *_ in known],
                other_ids={patient: others for patient, *others in known if others},
            )
            store.block.check()
            check_offsets(store.units, store.block.count)
            if len(store.units) != len(store.patients) + 1:
                raise ValueError("records of others")
            return store
        except (OSError, ValueError, EOFError) as error:
            raise StorageError(
                f"the prepared records in {folder} are damaged or cannot be read ({reason(error)})",
                why="they are what the site trains on",
                fix="remove that folder, and prepare them again: grandrounds client prepare",
            ) from error

    def write_whose(self, folder: Path) -> None:
        """Write whose the records are, beside a block that is in the folder. Raises StorageError and OSError."""
        known = [[patient, *self.other_ids.get(patient, ())] for patient in self.patients]
        write_atomically(folder / _PATIENTS, json.dumps(known).encode(), mode=0o600)
        write_array(folder / _UNITS, self.units)

    def identifiers(self, patient: str) -> list[str]:
        """All that a patient is known by."""
        return [patient, *self.other_ids.get(patient, ())]

    def kept(self, opted_out: Collection[str]) -> Offsets:
        """The numbers of the patients none of whose identifiers' canonical forms is among those who ``opted_out``."""
        if not opted_out:
            return np.arange(len(self.patients))
        forms = (map(canonical, self.identifiers(patient)) for patient in self.patients)
        return np.array([n for n, known in enumerate(forms) if not any(one in opted_out for one in known)], np.int64)

    def only(self, patients: Offsets, folder: Path | None = None) -> "Store":
        """A store of some patients alone, by their numbers, written to a ``folder`` if one is given."""
        kept = {self.patients[number] for number in patients}
        records = [np.arange(self.units[number], self.units[number + 1]) for number in patients]
        block = gathered([self.block], np.concatenate([np.zeros(0, dtype=np.int64), *records]), folder)
        store = Store(
            block=block,
            units=np.concatenate([[0], np.cumsum(np.diff(self.units)[patients])]),
            patients=[self.patients[number] for number in patients],
            other_ids={one: ids for one, ids in self.other_ids.items() if one in kept},
        )
        if folder is not None:
            store.write_whose(folder)
        return store

    def contents(self, patients: Offsets) -> Iterator[bytes]:
        """The tokens of each record of some patients, by their numbers, all of its windows one after another."""
        for number in patients.tolist():
            for record in range(self.units[number], self.units[number + 1]):
                yield self.block.record(record).tobytes()

    def select(self, privacy_unit: PrivacyUnit, patients: Offsets, *, max_tokens: int) -> "Units":
        """The privacy units of some patients, by their numbers: each one's windows, or each of their records'.

        A window is padded to the least of ``bucket_lengths(max_tokens)`` that holds it.
        """
        starts, ends = self.units[patients], self.units[patients + 1]
        if privacy_unit == "record":
            starts = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.arange, starts, ends)])
            ends = starts + 1
        records = self.block.records
        return Units(self.block, records[starts], records[ends], bucket_lengths(max_tokens))


class Unit(Sequence[Example]):
    """The windows of one privacy unit, each read and padded when it is looked at."""

    def __init__(self, block: Block, windows: range, lengths: Sequence[int]) -> None:
        self._block = block
        self._windows = windows
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._windows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Unit": ...
    def __getitem__(self, index: int | slice) -> "Example | Unit":
        if isinstance(index, slice):
            return Unit(self._block, self._windows[index], self._lengths)
        window = self._block.window(self._windows[index])
        return window.example(self._lengths[bisect_left(self._lengths, len(window.tokens))])


class Units(Sequence[Unit]):
    """Privacy units, none of whose records is in memory."""

    def __init__(self, block: Block, starts: Offsets, ends: Offsets, lengths: Sequence[int]) -> None:
        self.block = block
        self._starts = starts
        self._ends = ends
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> "Units": ...
    def __getitem__(self, index: int | slice) -> "Unit | Units":
        if isinstance(index, slice):
            return Units(self.block, self._starts[index], self._ends[index], self._lengths)
        return Unit(self.block, range(int(self._starts[index]), int(self._ends[index])), self._lengths)

    @property
    def sizes(self) -> Offsets:
        """How many windows each has: int64 [units]."""
        return self._ends - self._starts

    @property
    def windows(self) -> int:
        """How many windows they have."""
        return int(self.sizes.sum())

    @property
    def learnable(self) -> int:
        """How many of these have a token to learn."""
        counted = np.concatenate([[0], np.cumsum(self.block.has_target)])
        return int((counted[self._ends] - counted[self._starts]).sum())
