"""A row of the benchmark: what one run was and what came of it; and the file of rows, which each run adds one to."""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from ....common.crypto.identity import Hex32, canonical_json, sha256
from ....common.errors import StorageError, reason
from ....common.schema import Section
from ....common.study.study import Study
from ....common.system.files import write_atomically
from ...builtin.patients import Split
from .ways import COMPARED, Run, Way

Perplexity = Annotated[float, Field(ge=1)]
F1 = Annotated[float, Field(ge=0, le=1)]

_TRAINING: Final = {"model", "data", "privacy", "training", "secagg"}


class Subject(Section):
    """Which run a row is of, whenever and by which version of the program it was made.

    ``settings`` is a hash of all that a study says of training, is no default, and is not compared here: so a field
    that a later version adds does not part its rows from those of before. Files stand in it by their own hashes.
    """

    way: Way
    epsilon: float | None
    sites: int
    patients: int
    split: Split
    seed: int
    settings: Hex32
    noise_over_claimed: float | None

    @classmethod
    def of(cls, run: Run, study: Study) -> "Subject":
        """Of a run whose case has the ``study``. Raises StudyError where a file that this names cannot be used."""
        return Subject(
            way=run.way,
            epsilon=run.epsilon,
            sites=run.case.sites,
            patients=run.case.patients,
            split=run.case.split,
            seed=run.case.seed,
            settings=sha256(canonical_json(stated_of(study))),
            noise_over_claimed=run.noise_over_claimed(study),
        )

    @property
    def case(self) -> tuple[object, ...]:
        """Whose patients, and where: what runs that are compared share."""
        return self.sites, self.patients, self.split, self.seed

    @property
    def folder(self) -> str:
        """A folder's name for the run."""
        claim = "" if self.epsilon is None else f"-{self.epsilon:g}"
        what = f"{self.way}{claim}-{self.sites}-sites-{self.patients}-patients-{self.split}-seed-{self.seed}"
        return f"{what}-{sha256(canonical_json(self.model_dump(mode='json')))[:8]}"


class Row(Subject):
    """One run.

    Attributes:
        stated: what of the settings is no default, and files by their hashes.
        perplexity_before: over whole held-out notes, of three digits as reports have it; None if it is not finite. Of
            several adapters the geometric mean.
        f1_before: of the extraction task, where it was asked; of several adapters the mean.
        manifest: its hash, and that of the ledger's last entry; None where no federation ran.
        verified: what ``verify`` made of the study's folder, by the name of its outcome.
        program: the hash of the program's files.
        finished: when, in UTC, as ISO 8601 has it.
    """

    stated: dict[str, Any]
    rounds: int
    noise_multiplier: float | None
    perplexity_before: Perplexity
    perplexity_after: Perplexity | None
    f1_before: F1 | None
    f1_after: F1 | None
    manifest: Hex32 | None
    ledger: Hex32 | None
    verified: str | None
    seconds: float
    version: str
    program: Hex32
    finished: str

    @property
    def subject(self) -> Subject:
        """Which run this is of."""
        return Subject.model_validate(self.model_dump(include=set(Subject.model_fields)))


def stated_of(study: Study) -> dict[str, Any]:
    """What a study says of training that is no default, section by section; a file of it by its hash.

    Raises StudyError where a file cannot be used.
    """
    if study.model.first_adapter is not None or study.data.public is not None:
        from ....common.study.first_adapter import with_pinned_adapter  # it loads torch
        from ....common.study.public_records import with_pinned_records

        study = with_pinned_records(with_pinned_adapter(study))
    said = study.model_dump(mode="json", include=_TRAINING, exclude={"privacy": set(COMPARED)}, exclude_defaults=True)
    return {section: fields for section, fields in said.items() if fields}


class RowFile:
    """Rows as lines of JSON. One is added at a time, and is on disk when ``add`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Self:
        """The file, which is made where there is none. Raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path)

    def read(self) -> list[Row]:
        """All rows; what a killed process left of a last line is none. Raises StorageError."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            return [Row.model_validate_json(line) for line in lines if line.endswith(b"\n")]
        except (OSError, ValueError) as error:  # pydantic's are of the latter
            raise StorageError(
                f"{self.path} cannot be read as rows of this benchmark: {reason(error)}",
                why="a table says nothing if one of its rows is not understood",
                fix="name the rows.jsonl of a benchmark that this version ran; a new one needs a folder of its own",
            ) from None

    def add(self, row: Row) -> None:
        """Add a row, in the place of an earlier one of the same run, or of what a killed process left of one.

        Raises StorageError.
        """
        rows = self.read()
        kept = [each for each in rows if each.subject != row.subject]
        if len(kept) < len(rows):
            write_atomically(self.path, b"".join(map(_line, (*kept, row))))
            return
        try:
            with self.path.open("r+b") as file:
                *_, torn = file.read().rpartition(b"\n")
                file.seek(-len(torn), os.SEEK_END)
                file.truncate()
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _line(row: Row) -> bytes:
    return row.model_dump_json().encode() + b"\n"


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {reason(error)}",
        why="a run that is in no row would be done again",
        fix="free some space or name another --output, and run the same command again",
    )
