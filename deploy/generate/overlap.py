"""How near notes come to records: the nearest of all by what they share, and the longest run of words in common."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...common.data.record import Content
from ...common.data.text_lengths import text_of

WORDS: Final = 5  # of a shingle (Broder 1997, "On the resemblance and containment of documents")
_WORD: Final = re.compile(r"\w+")
_NOBODY, _SEVERAL = -1, -2


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Of each note, in their order.

    Attributes:
        contained: float [notes], the greatest part of its shingles that one record has. Not the part of both that
            they share (Jaccard's), which would call a copy of a long record's beginning far from it.
        run: int [notes], the most words in a row that one record has, too; 0 where no shingle is shared. A run is
            followed shingle by shingle, so where a record repeats itself it may be counted somewhat too long.
        alone: int [notes], the most words in a row all of whose shingles one patient's records have, and nobody else's.
    """

    contained: NDArray[np.float64]
    run: NDArray[np.int64]
    alone: NDArray[np.int64]

    def __len__(self) -> int:
        """How many notes."""
        return len(self.contained)

    def __getitem__(self, some: slice) -> "Nearness":
        """That of some of the notes."""
        return Nearness(contained=self.contained[some], run=self.run[some], alone=self.alone[some])


class Overlap:
    """Notes that records are compared with, one record after another: in memory are the notes and no record.

    A shingle is known by 64 bits of BLAKE2b: two that differ are taken for one with probability 2⁻⁶⁴.
    """

    def __init__(self, notes: Sequence[str]) -> None:
        shingles = [_shingles(note) for note in notes]
        of_all = np.concatenate([*shingles, np.empty(0, np.uint64)])
        self._known, self._at = np.unique(of_all, return_inverse=True)  # [u], and of each place in a note which
        note_of = np.repeat(np.arange(len(notes)), [len(each) for each in shingles])
        self._starts = np.concatenate([[True], note_of[1:] != note_of[:-1]]) if len(note_of) else np.empty(0, bool)
        self._note_of = note_of
        # Each shingle of a note once, for what is a set.
        once = np.unique(note_of * max(len(self._known), 1) + self._at)
        self._set_note, self._set_at = np.divmod(once, max(len(self._known), 1))
        self._sizes = np.bincount(self._set_note, minlength=len(notes))
        self._contained = np.zeros(len(notes))
        self._run = np.zeros(len(notes), np.int64)
        self._owner = np.full(len(self._known), _NOBODY, np.int64)
        self._patients: dict[str, int] = {}

    def compare(self, patient: str, content: Content) -> None:
        """Hold a patient's record against every note."""
        found = np.unique(_shingles(text_of(content)))
        there = np.zeros(len(self._known), bool)
        at = np.searchsorted(self._known, found)
        known = at < len(self._known)
        there[at[known]] = self._known[at[known]] == found[known]
        shared = np.bincount(self._set_note[there[self._set_at]], minlength=len(self._sizes))
        np.maximum(self._contained, shared / np.maximum(self._sizes, 1), out=self._contained)
        self._longest(there[self._at], self._starts, self._run)
        number = self._patients.setdefault(patient, len(self._patients))
        own = self._owner[there]
        self._owner[there] = np.where((own == _NOBODY) | (own == number), number, _SEVERAL)

    def nearness(self) -> Nearness:
        """What was found, once all records were compared."""
        alone = np.zeros_like(self._run)
        owners = self._owner[self._at]
        changes = np.concatenate([[True], owners[1:] != owners[:-1]]) if len(owners) else np.empty(0, bool)
        self._longest(owners >= 0, self._starts | changes, alone)
        return Nearness(contained=self._contained.copy(), run=self._run.copy(), alone=alone)

    def _longest(self, hit: NDArray[np.bool_], begins: NDArray[np.bool_], longest: NDArray[np.int64]) -> None:
        """Raise ``longest`` [notes] to the words of each note's longest run of hit places, cut at ``begins``."""
        places = np.flatnonzero(hit)
        if not len(places):
            return
        fresh = np.concatenate([[True], (places[1:] != places[:-1] + 1) | begins[places[1:]]])
        lengths = np.diff(np.append(np.flatnonzero(fresh), len(places))) + WORDS - 1
        np.maximum.at(longest, self._note_of[places[fresh]], lengths)


def cut_to(text: str, other: str) -> str:
    """The beginning of a text that has no more words than another.

    >>> cut_to("No pain. No fever.", "Two words")
    'No pain'
    """
    most, ends = sum(1 for _ in _WORD.finditer(other)), [found.end() for found in _WORD.finditer(text)]
    return text if len(ends) <= most else text[: ends[most - 1] if most else 0]


def _shingles(text: str) -> NDArray[np.uint64]:
    """Every ``WORDS`` words in a row, in order, [words - WORDS + 1]; of a shorter text all its words as one."""
    return np.fromiter(map(_hashed, _windows(_WORD.findall(text.lower()))), dtype=np.uint64)


def _windows(words: Sequence[str]) -> Iterator[str]:
    for start in range(max(len(words) - WORDS + 1, min(len(words), 1))):
        yield " ".join(words[start : start + WORDS])


def _hashed(shingle: str) -> int:
    return int.from_bytes(hashlib.blake2b(shingle.encode("utf-8", "replace"), digest_size=8).digest(), "big")
