"""Preparation: records are tokenised once, in parallel and by batches, and put in their order. Going on is possible."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..sources.files import Reading
from ..sources.identifiers import Similar, canonical
from ..sources.rows import Rows
from ..sources.source import DataSource, read_rows
from ..system.files import make_private_folder
from .blocks import Offsets, Tokens, gathered, offsets
from .quarantine import Quarantine
from .record import Record, SetAsideContent
from .records import Findings, RecordChecks, parsed, size_of
from .shards import Shard, Tokenised, read_as, read_of
from .store import Store
from .tokenisation import Tokenisation
from .windows import NOTHING, Layout, cut_of, windows_of

# Of records, before they are tokenised: as many, in their order, each a function of itself and its patient alone.
Minimise = Callable[[Sequence[Record]], Sequence[Record]]
# Of one patient's records those that count, by number: from the identifier, digests, and tokens by a record's number.
Keep = Callable[[str, Sequence[bytes], Callable[[int], Tokens]], Sequence[int]]

_BATCH: Final = 256  # records that are tokenised at a time
_BATCH_CHARACTERS: Final = 1 << 20
_IN_FLIGHT: Final = 3  # batches; two are worked on, one waits
_SHARD: Final = 1 << 13


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A store, with what its making found.

    ``quarantine`` lists what counts as zero, ``cut`` is how many prompts lost their beginning, ``lost`` these tokens.
    """

    store: Store
    quarantine: Quarantine
    cut: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How records become a store.

    *Formal guarantee.* A record's windows are a function of what the record says, its patient's identifier and these
    settings; whether it counts, of its patient's records; the store's order, of all windows. Where the records were
    read, and in which order, plays no part.
    """

    tokenisation: Tokenisation
    max_tokens: int
    overlap: int = 0
    similar: Similar | None = None
    minimise: Minimise | None = None
    keep: Keep | None = None

    def of_source(
        self,
        source: DataSource,
        folder: Path | None = None,
        *,
        progress: Callable[[int, float], None] = lambda records, share: None,
    ) -> Prepared:
        """The store of a source's records; as ``of_rows``, and ``progress`` is told the share of the source, too."""
        reading = Reading()
        rows = read_rows(source, reading, self.similar)
        return self.of_rows(
            source.name,
            rows,
            folder,
            patient_column=source.patient,
            progress=lambda records: progress(records, reading.share),
        )

    def contents(self, records: Sequence[Record]) -> list[bytes]:
        """The tokens of each record's windows as ``Store.contents`` has them. Raises what ``of_rows`` does."""
        made = self._batch(records)
        return [np.concatenate([window.tokens for window in one.windows]).astype(self._dtype).tobytes() for one in made]

    def of_rows(
        self,
        name: str,
        rows: Rows,
        folder: Path | None = None,
        *,
        patient_column: str | None = None,
        progress: Callable[[int], None] = lambda records: None,
    ) -> Prepared:
        """The store of a source's rows, in memory, or in a ``folder`` that is there; errors call the source ``name``.

        What an interrupted call left in the folder is gone on with; where the source gives other records than it did
        then, that is removed and DataError raised, so that the next call begins anew.
        ``progress`` is told how many records are done. Raises DataError as ``RecordChecks`` does and where most records
        cannot be laid out, ModelError, StorageError and OSError.
        """
        quarantine = Quarantine()
        checks = RecordChecks(name, self.similar, quarantine)
        records = (record for one in parsed(rows, patient_column) if (record := checks.admit(one)) is not None)
        shards: list[Shard] = []
        for shard in self._shards(name, records, folder):
            shards.append(shard)
            progress(sum(each.block.count for each in shards))
        findings = checks.finish()
        refused = [found for shard in shards for found in shard.refused]
        for place, why in refused:
            quarantine.add(place, why)
        if 2 * len(refused) > sum(shard.block.count for shard in shards):
            place, why = refused[0]
            raise DataError(
                f"{place}: {why}, and so for most records",
                why="a study trains on records that its model can read",
                fix="see what the model's tokenizer, its chat template and the policy's rules are made for",
            )
        store = _ordered(shards, findings, folder, self.keep)
        if folder is not None:
            store.write_whose(folder)
            shutil.rmtree(folder / _UNORDERED)
        cut, lost = (sum(counts) for counts in zip(*((shard.cut, shard.lost) for shard in shards), strict=True))
        return Prepared(store=store, quarantine=quarantine, cut=cut, lost=lost)

    def _shards(self, name: str, records: Iterator[Record], folder: Path | None) -> Iterator[Shard]:
        if folder is None:
            yield from (Shard.of(some, self._dtype) for some in _parts(self._tokenised(records), _SHARD))
            return
        make_private_folder(folder / _UNORDERED)
        number = 0
        while (found := Shard.open(_shard_folder(folder, number))) is not None:
            number += 1
            if read_of(map(read_as, islice(records, found.block.count))) != found.source:
                shutil.rmtree(folder / _UNORDERED)
                raise DataError(
                    f"{name} gives other records than when its preparation was interrupted",
                    why="some would be left out, or be there twice or under another's name",
                    fix="repeat the command, which begins anew",
                )
            yield found
        for some in _parts(self._tokenised(records), _SHARD):
            place = _shard_folder(folder, number)
            shutil.rmtree(place, ignore_errors=True)
            make_private_folder(place)
            Shard.of(some, self._dtype).write(place)
            found = Shard.open(place)
            assert found is not None  # noqa: S101
            number += 1
            yield found

    @property
    def _dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.tokenisation.size <= 1 << 16 else np.uint32

    def _tokenised(self, records: Iterator[Record]) -> Iterator[Tokenised]:
        """Each record's tokens, in order. The library computes without the interpreter's lock: hence threads."""
        waiting: deque[Future[list[Tokenised]]] = deque()
        with ThreadPoolExecutor(2) as pool:
            for batch in _batches(records):
                waiting.append(pool.submit(self._batch, batch))
                if len(waiting) >= _IN_FLIGHT:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _batch(self, records: Sequence[Record]) -> list[Tokenised]:
        given = records if self.minimise is None else self.minimise(records)
        found = zip(given, self.tokenisation.layouts(given), map(read_as, records), strict=True)
        return [self._one(record, layout, read) for record, layout, read in found]

    def _one(self, record: Record, layout: Layout | DataError, read: bytes) -> Tokenised:
        if isinstance(layout, DataError):
            was_noted = isinstance(record.content, SetAsideContent) and not record.content.reason  # where it was read
            refused = None if was_noted else (record.position, layout.what.removeprefix(f"{record.position}: "))
            return Tokenised(patient_id=record.patient_id, windows=[NOTHING], read=read, refused=refused)
        windows = windows_of(layout, max_tokens=self.max_tokens, overlap=self.overlap)
        cut = cut_of(layout, self.max_tokens)
        return Tokenised(patient_id=record.patient_id, windows=windows, read=read, cut=cut)


_UNORDERED: Final = "unordered"


def _shard_folder(folder: Path, number: int) -> Path:
    return folder / _UNORDERED / f"{number:06d}"


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += size_of(record.content)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _parts(records: Iterable[Tokenised], size: int) -> Iterator[list[Tokenised]]:
    every = iter(records)
    while some := list(islice(every, size)):
        yield some


def _ordered(shards: Sequence[Shard], findings: Findings, folder: Path | None, keep: Keep | None) -> Store:
    """The records that ``keep`` leaves, by their patients, and of a patient by their digests.

    Raises DataError where nobody is left.
    """
    patients = sorted(set(findings.spellings.values()), key=lambda one: (canonical(one), one))
    ranks = {patient: rank for rank, patient in enumerate(patients)}
    whose = np.concatenate([_ranks(shard, findings, ranks) for shard in shards])
    digests = np.concatenate([shard.digests for shard in shards])
    order = np.lexsort((digests[:, 1], digests[:, 0], whose))
    if keep is not None:
        found = _Found(shards, digests)
        order = np.concatenate([found.counting(patients[whose[one[0]]], one, keep) for one in _runs(order, whose)])
    if not len(order):
        raise DataError(
            "no patient has as many records as the policy asks for",
            why="there is nothing to train on",
            fix="lower minimise.records_per_patient in policy.toml",
        )
    present, starts = np.unique(whose[order], return_index=True)
    return Store(
        block=gathered([shard.block for shard in shards], order, folder),
        units=np.append(starts, len(order)).astype(np.int64),
        patients=[patients[number] for number in present],
        other_ids={one: ids for number in present if (ids := findings.other_ids.get(one := patients[number]))},
    )


def _runs(order: Offsets, whose: Offsets) -> list[Offsets]:
    """The numbers of each patient's records."""
    return np.split(order, np.flatnonzero(np.diff(whose[order])) + 1)


class _Found:
    """All records of some shards by their numbers, to be chosen from."""

    def __init__(self, shards: Sequence[Shard], digests: NDArray[np.uint64]) -> None:
        self._shards = shards
        self._firsts = offsets(shard.block.count for shard in shards)
        self._digests = digests.astype(">u8")
        self._is_nothing: NDArray[np.bool_] = (digests == 0).all(axis=1)

    def counting(self, patient: str, numbers: Offsets, keep: Keep) -> Offsets:
        """Those of one patient's records that count: ``keep`` says it of whatever can be read; none, of none of them.

        The others keep their places where any counts.
        """
        readable = numbers[~self._is_nothing[numbers]]
        digests = [self._digests[number].tobytes() for number in readable]
        kept = readable[list(keep(patient, digests, lambda number: self._tokens(readable[number])))]
        return np.concatenate([numbers[self._is_nothing[numbers]], kept]) if len(kept) else kept

    def _tokens(self, number: int) -> Tokens:
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self._shards[shard].block.record(int(number - self._firsts[shard]))


def _ranks(shard: Shard, findings: Findings, ranks: dict[str, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    own = np.array([ranks[findings.spellings[patient]] for patient in shard.patients], dtype=np.int64)
    return own[shard.owners]
