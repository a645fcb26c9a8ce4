"""Synthetic notes beside a site's own records: how near they come, and how near notes come that nobody trained on."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...common.crypto.identity import sha256
from ...common.data.quarantine import Quarantine
from ...common.data.record import Record
from ...common.data.records import RecordChecks, parsed
from ...common.data.text_lengths import text_of
from ...common.errors import DataError, StorageError
from ...common.sources.identifiers import canonical
from ...common.sources.source import DataSource, read_rows
from .notes_file import PARQUET, about_path
from .overlap import WORDS, Nearness, Overlap, cut_to

QUANTILES: Final = (0.5, 0.9, 0.99, 1.0)
# The chance at which notes are called nearer than unseen ones; a third of it for each of the three measures.
_SIGNIFICANCE: Final = 0.05
MEASURES: Final = {
    "contained": f"the part of a note’s {WORDS}-word shingles that the nearest record has, too",
    "run": "the most words in a row that one record has, too",
    "alone": f"the most words in a row, in shingles of {WORDS}, that the records of one patient have and nobody else’s",
}
_LEVEL: Final = _SIGNIFICANCE / len(MEASURES)
_EVERY: Final = 1000  # records between two words of progress


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """How many synthetic notes are nearer to a record than every held-out note, by one measure.

    ``chance`` is that of so many or more where synthetic and held-out notes are alike (``exceeding``).
    """

    count: int
    chance: float

    @property
    def is_nearer(self) -> bool:
        """Whether that is more than chance explains."""
        return self.chance < _LEVEL


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a site learns of synthetic notes; no word of a note or a record is in it.

    ``origin`` is what the notes say of themselves (``provenance``), None where nothing lies beside them.
    """

    notes: str
    origin: dict[str, Any] | None
    records: int
    patients: int
    synthetic: Nearness
    held_out: Nearness

    def quantiles(self) -> Iterator[tuple[str, list[float], list[float]]]:
        """Of each measure the ``QUANTILES`` of the synthetic notes, and of those held out."""
        for name in MEASURES:
            yield name, *(np.quantile(getattr(of, name), QUANTILES).tolist() for of in (self.synthetic, self.held_out))

    def beyond(self) -> dict[str, Beyond]:
        """By each measure, the synthetic notes that are nearer than all that are held out."""
        found = {}
        for name in MEASURES:
            notes, unseen = getattr(self.synthetic, name), getattr(self.held_out, name)
            count = int((notes > unseen.max()).sum())
            found[name] = Beyond(count=count, chance=exceeding(count, notes=len(notes), unseen=len(unseen)))
        return found

    def verdict(self) -> str:
        """In words."""
        nearer = [MEASURES[name] for name, beyond in self.beyond().items() if beyond.is_nearer]
        if nearer:
            return (
                "NEARER THAN UNSEEN NOTES: more synthetic notes than chance explains are nearer to this site’s records "
                f"than every held-out note is ({'; '.join(nearer)}). Find out why before they are used: an adapter "
                "that repeats its records, or held-out notes of another kind."
            )
        least = least_telling(notes=len(self.synthetic), unseen=len(self.held_out))
        if least is None:
            return (
                f"NOTHING CAN BE TOLD: beside {len(self.held_out)} held-out notes no number of copies among "
                f"{len(self.synthetic)} synthetic ones would be more than chance explains. Hold out more, or make more."
            )
        return (
            f"No nearer than unseen notes, by any of the three measures; {least} notes nearer than every held-out one "
            "would have been called so. That is no proof: fewer copies pass, and what protects this site’s patients is "
            "the study’s ε."
        )


def exceeding(count: int, *, notes: int, unseen: int) -> float:
    """The chance that ``count`` or more of ``notes`` exceed all of ``unseen``, where all are draws of one kind.

    The exact test by exceedances (Gumbel and von Schelling 1950, "The Distribution of the Number of Exceedances"): the
    ``count`` greatest of all would have to be notes. Ties, which count for unseen, make it no smaller than the truth.

    >>> exceeding(0, notes=5, unseen=5), exceeding(1, notes=2, unseen=2), exceeding(2, notes=2, unseen=2)
    (1.0, 0.5, 0.16666666666666666)
    """
    chance = 1.0
    for place in range(count):
        chance *= (notes - place) / (notes + unseen - place)
    return chance


def least_telling(*, notes: int, unseen: int) -> int | None:
    """How many notes must exceed all of ``unseen`` to be more than chance explains; None where all are too few.

    >>> least_telling(notes=1000, unseen=1000), least_telling(notes=3, unseen=2)
    (6, None)
    """
    counts = range(1, notes + 1)
    return next((count for count in counts if exceeding(count, notes=notes, unseen=unseen) < _LEVEL), None)


def check(
    notes: Path, records: DataSource, held_out: DataSource, *, tell: Callable[[str], None] = lambda doing: None
) -> Checked:
    """Hold synthetic notes, and as many held-out ones, against every record, of which one is in memory at a time.

    A held-out note is cut to the words of a synthetic one: of a longer note more can be found, and beside whole notes
    no copy in a short one would stand out.

    Raises StorageError where the notes are not as they were written, and DataError where records cannot be read or a
    patient's are in both.
    """
    tell("reading the notes")
    texts, origin = read_notes(notes)
    unseen = _some(list(_records(held_out)), len(texts))
    if not texts or not unseen:
        raise DataError(
            "there are no notes to compare" if not texts else "no note is held out",
            why="how near synthetic notes are is told by how near notes are that nobody trained on",
            fix="give notes of `grandrounds generate`, and held-out records of the site's kind (--held-out)",
        )
    cut = (cut_to(text_of(record.content), text) for record, text in zip(unseen, texts, strict=False))
    overlap = Overlap([*texts, *cut])
    patients, count = set[str](), 0
    for record in _records(records):
        patient = canonical(record.patient_id)
        patients.add(patient)
        overlap.compare(patient, record.content)
        count += 1
        if count % _EVERY == 0:
            tell(f"{count:,} records compared")
    _require_apart(unseen, patients)
    found = overlap.nearness()
    return Checked(
        notes=notes.name,
        origin=origin,
        records=count,
        patients=len(patients),
        synthetic=found[: len(texts)],
        held_out=found[len(texts) :],
    )


def read_notes(path: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The texts of a file of notes, and what lies beside them of their origin. Raises StorageError."""
    try:
        data = path.read_bytes()
        texts = (
            _of_parquet(path) if path.suffix == PARQUET else [json.loads(line)["text"] for line in data.splitlines()]
        )
        beside = about_path(path)
        origin = json.loads(beside.read_bytes()) if beside.exists() else None
        if not all(isinstance(text, str) for text in texts) or not isinstance(origin, dict | None):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path.name} cannot be read as notes: {getattr(error, 'strerror', None) or 'it has other rows'}",
            why="each note is compared with the site's records",
            fix="give the file that `grandrounds generate` wrote",
        ) from None
    if origin is not None and origin.get("notes_sha256") != sha256(data):
        raise StorageError(
            f"{path.name} is not as {about_path(path).name} says: its hash is another",
            why="the claim that lies beside the notes is of others, or notes were taken out or put in",
            fix="get both files anew",
        )
    return texts, origin


def _of_parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        texts: list[Any] = pq.read_table(path, columns=["text"])["text"].to_pylist()
    except pa.ArrowException as error:
        raise ValueError from error
    return texts


def _records(source: DataSource) -> Iterator[Record]:
    """Every record that can be read, one after another; those that cannot, a site sets aside as it does in a study."""
    checks = RecordChecks(source.name, "same", Quarantine())
    for one in parsed(read_rows(source), source.patient):
        record = checks.admit(one)
        if record is not None:
            yield record
    checks.finish()


def _some(records: Sequence[Record], most: int) -> Sequence[Record]:
    """At most so many, evenly out of all."""
    return records[:: max(1, -(-len(records) // max(most, 1)))]


def _require_apart(unseen: Sequence[Record], patients: set[str]) -> None:
    both = {canonical(record.patient_id) for record in unseen} & patients
    if both:
        raise DataError(
            f"patients with held-out records have others among the site's: {len(both)}",
            why="one patient's notes are near to each other, so that the measure would be too lax",
            fix="hold out all records of a patient or none",
        )
