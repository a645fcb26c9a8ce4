"""Shards: records that are tokenised but not yet in their order, a few thousand at a time."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..system.files import write_atomically
from .blocks import Block, private
from .record import Record
from .windows import Window

_SAID: Final = "shard.json"  # written last: a shard without it is not whole
_NUMBERS: Final = "numbers.npz"
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenised:
    """A record, tokenised: whose it is, its windows, and the digest of what was ``read``.

    ``refused`` says where and why nothing of it can be learnt, ``cut`` how many tokens a prompt lost of its beginning.
    """

    patient_id: str
    windows: Sequence[Window]
    read: bytes
    refused: tuple[str, str] | None = None
    cut: int = 0

    @property
    def digest(self) -> bytes:
        """16 bytes that follow from its windows, and tell them apart: BLAKE2b; of nothing, zeros."""
        if not any(len(window.tokens) for window in self.windows):
            return bytes(_DIGEST_BYTES)
        found = blake2b(digest_size=_DIGEST_BYTES)
        for window in self.windows:
            found.update(np.array([len(window.tokens), *sum(window.learnt, ())], dtype="<i4").tobytes())
            found.update(window.tokens.astype("<i4").tobytes())
        return found.digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some records in the order of their source.

    Attributes:
        block: their windows.
        patients: identifiers as they are written, each once.
        owners: int32 [records], whose each record is, by the place in ``patients``.
        digests: uint64 [records, 2], most significant first; zeros of a record of which nothing is learnt.
        refused: places of records of which nothing can be learnt, and why.
        cut: how many prompts lost their beginning.
        lost: how many tokens these were.
        source: what was ``read_of`` them.
    """

    block: Block
    patients: Sequence[str]
    owners: NDArray[np.int32]
    digests: NDArray[np.uint64]
    refused: Sequence[tuple[str, str]]
    cut: int
    lost: int
    source: str

    @classmethod
    def of(cls, records: Sequence[Tokenised], dtype: type[np.unsignedinteger[Any]]) -> "Shard":
        """The shard of some records, whose tokens ``dtype`` holds."""
        numbers: dict[str, int] = {}
        digests = b"".join(record.digest for record in records)
        return cls(
            block=Block.of([record.windows for record in records], dtype),
            owners=np.array([numbers.setdefault(record.patient_id, len(numbers)) for record in records], np.int32),
            patients=list(numbers),
            digests=np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64),
            refused=[record.refused for record in records if record.refused],
            cut=sum(record.cut > 0 for record in records),
            lost=sum(record.cut for record in records),
            source=read_of(record.read for record in records),
        )

    @classmethod
    def open(cls, folder: Path) -> "Shard | None":
        """The shard in a folder; None where it is not whole, or damaged. Raises OSError."""
        if not (folder / _SAID).exists():
            return None
        try:
            said = json.loads((folder / _SAID).read_bytes())
            refused = [(place, why) for place, why in said.pop("refused")]
            with np.load(folder / _NUMBERS, allow_pickle=False) as numbers:
                return cls(block=Block.open(folder), refused=refused, **said, **numbers)
        except (FileNotFoundError, ValueError, EOFError, LookupError, TypeError, BadZipFile):
            return None

    def write(self, folder: Path) -> None:
        """Write it to a folder that is there, for its owner alone. Raises OSError and StorageError."""
        self.block.write(folder)
        with open(folder / _NUMBERS, "wb", opener=private) as file:
            np.savez(file, owners=self.owners, digests=self.digests)
            os.fsync(file.fileno())
        names = ("patients", "refused", "cut", "lost", "source")
        said = {name: getattr(self, name) for name in names}
        write_atomically(folder / _SAID, json.dumps(said).encode(), mode=0o600)


def read_as(record: Record) -> bytes:
    """16 bytes that tell what was read of a record apart: place, patient and content."""
    said = repr((record.position, record.patient_id, record.content))
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_of(digests: Iterable[bytes]) -> str:
    """What tells records apart by the digests of what was read of each, in hex."""
    return blake2b(b"".join(digests), digest_size=16).hexdigest()
