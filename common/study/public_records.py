"""Public records that every site adds to each step: a file, which the study names by its hash."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ..crypto.identity import sha256
from ..data.preparation import Preparation
from ..data.tokenisation import Tokenisation
from ..errors import StudyError
from ..model.example import Example
from ..schema import known
from ..sources.source import DataSource
from .first_adapter import BY_HASH
from .study import Study


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicRecords:
    """The file ``path`` of public records, whose bytes are ``data``."""

    path: Path
    data: bytes

    @classmethod
    def read(cls, path: Path, *, expected: str | None = None) -> Self:
        """The records of a file, whose hash is the ``expected`` one, as a study names it. Raises StudyError."""
        if path.suffix != ".jsonl":  # as which it is read wherever it is copied to
            raise _unfit(f"{path} is no file of JSON lines (.jsonl)")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unfit(f"{path} cannot be read: {error.strerror}") from error
        found = cls(path=path, data=data)
        if expected not in (None, found.name):
            raise _unfit(f"{path} is {found.name}, and not {expected}")
        return found

    @classmethod
    def of(cls, study: Study, path: Path | None = None) -> "PublicRecords | None":
        """Those of a study, from the file that it names, or from ``path`` where it names a hash; None if it has none.

        Raises StudyError.
        """
        named = study.data.public
        if named is None:
            return None
        if not named.startswith(BY_HASH):
            return cls.read(Path(named))
        if path is None:
            raise _unfit(f"the study names its public records by the hash {named} alone")
        return cls.read(path, expected=named)

    @property
    def name(self) -> str:
        """How a study that is fixed names them."""
        return f"{BY_HASH}{sha256(self.data)}"

    def units(self, study: Study, tokenisation: Tokenisation) -> Sequence[Sequence[Example]]:
        """Their units, as the study's own are read: the same at every site.

        Raises StudyError where there are fewer than enter a step, and DataError and ModelError as ``Preparation`` does.
        """
        preparation = Preparation(
            tokenisation=tokenisation,
            max_tokens=study.data.max_tokens,
            overlap=study.data.overlap,
            similar="different",  # public: nobody has to be protected
        )
        store = preparation.of_source(DataSource.of(self.path)).store
        units = store.select(study.privacy.unit, np.arange(len(store.patients)), max_tokens=study.data.max_tokens)
        if len(units) < study.data.public_units:
            raise _unfit(
                f"{self.path} has {len(units)} {study.privacy.unit}s, and a step needs {study.data.public_units}"
            )
        return units


def with_pinned_records(study: Study) -> Study:
    """The study with the hash of its public records in place of the file. Raises StudyError."""
    named = study.data.public
    if named is None or named.startswith(BY_HASH):
        return study
    data = study.data.model_copy(update={"public": known(PublicRecords.of(study)).name})
    return study.model_copy(update={"data": data})


def _unfit(what: str) -> StudyError:
    return StudyError(
        what,
        why="every site adds of the same public records to its sums, and divides by how many",
        fix="give a file with at least data.public_units units; of a study that is fixed, its own: public.jsonl in "
        "study.zip and in the study's sums/",
    )
