"""A site's prepared records: tokenised once for all studies that read them alike, and opened in seconds."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

from ...common.crypto.identity import canonical_json
from ...common.data.preparation import Preparation, Prepared
from ...common.data.quarantine import Quarantine
from ...common.data.store import Store
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StorageError, reason
from ...common.model.base_folder import configuration_sha256, vocabulary_size_of
from ...common.study.study import DataSection
from ...common.system.files import make_private_folder, write_atomically
from ...common.system.locks import in_turn, is_held
from ..minimisation.minimiser import Minimiser
from .folder import SiteFolder, SiteSettings

FOUND: Final = "found.json"  # written last: a store without it is not whole
_FORMAT: Final = 1  # of what stands in a store: raised where the same records would make another one
_NAME_DIGITS: Final = 16

# Told how many records are done, and which share of the source was read.
Progress = Callable[[int, float], None]


def unseen(records: int, share: float) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, kw_only=True)
class PreparedRecords:
    """The records that site.toml names, in ``folder``: a place for each way in which studies read them.

    The ``minimiser`` applies the policy's rules.
    """

    folder: Path
    settings: SiteSettings
    minimiser: Minimiser | None

    @classmethod
    def of(cls, site: SiteFolder) -> Self:
        """A site's. Raises StudyError, DataError and StorageError."""
        return cls(folder=site.prepared, settings=site.settings(), minimiser=site.minimiser())

    def open(self, data: DataSection, *, again: bool = False, progress: Progress = unseen) -> Prepared:
        """As a study with these ``data`` reads them.

        They are opened where nothing has changed that they follow from, and else prepared, gone on with where that was
        interrupted; ``again`` prepares them in any case. One process does at a time. Raises DataError, ModelError,
        StudyError and StorageError.
        """
        place = self._place(data)
        make_private_folder(self.folder)
        with in_turn(lock_of(place)):
            if again:
                shutil.rmtree(place, ignore_errors=True)
            found = None if again else _opened(place)
            return found or self._prepare(place, data, progress)

    def has(self, data: DataSection) -> bool:
        """Whether they are there to be opened. Raises DataError where the source cannot be looked at."""
        return (self._place(data) / FOUND).exists()

    def remove_others(self, studies: Iterable[DataSection]) -> int:
        """Remove what none of the ``studies`` reads any more; how many places there were.

        Raises DataError where the source cannot be looked at, and StorageError.
        """
        read = [self._place(data) for data in studies]
        others = [place for place in places(self.folder) if place not in read]
        for place in others:
            remove(place)
        return len(others)

    def _prepare(self, place: Path, data: DataSection, progress: Progress) -> Prepared:
        model, rules = self.settings.model, self.minimiser and self.minimiser.rules
        preparation = Preparation(
            tokenisation=Tokenisation.load(str(model), vocabulary_size=vocabulary_size_of(model)),
            max_tokens=data.max_tokens,
            overlap=data.overlap,
            similar=self.settings.similar_identifiers,
            minimise=self.minimiser,
            keep=self.minimiser.keep if self.minimiser and rules and rules.chooses_records else None,
        )
        try:
            make_private_folder(place)
            made = preparation.of_source(self.settings.data, place, progress=progress)
        except OSError as error:
            raise StorageError(
                f"records cannot be prepared in {place} ({error.strerror})",
                why="a study trains on records that were tokenised beforehand",
                fix="free space there, and repeat the command: what was done is kept",
            ) from error
        set_aside = [[one.position, one.reason] for one in made.quarantine.set_aside]
        said = {"cut": made.cut, "lost": made.lost, "set_aside": set_aside}
        write_atomically(place / FOUND, json.dumps(said).encode(), mode=0o600)
        return made

    def _place(self, data: DataSection) -> Path:
        """By SHA-256 of all that they follow from: source, tokenizer and template, lengths, rules, programs."""
        said: dict[str, Any] = {
            "format": _FORMAT,
            "programs": [version("transformers"), version("tokenizers")],
            "source": self.settings.data.fingerprint(),
            "similar": self.settings.similar_identifiers,
            "model": configuration_sha256(self.settings.model),
            "lengths": [data.max_tokens, data.overlap],
            "rules": self.minimiser and self.minimiser.fingerprint,
        }
        return self.folder / sha256(canonical_json(said)).hexdigest()[:_NAME_DIGITS]


def places(folder: Path) -> list[Path]:
    """Where records are prepared in ``folder``, wholly or in part, for whichever study."""
    return sorted({folder / path.name[:_NAME_DIGITS] for path in folder.glob("*") if path.is_dir()})


def remove(place: Path) -> None:
    """Remove what is prepared there, once nobody is at it; who has it mapped keeps it. Raises StorageError."""
    with in_turn(lock_of(place)):
        try:
            for path in filter(Path.exists, (place, rewritten(place))):
                shutil.rmtree(path)
        except OSError as error:
            raise StorageError(
                f"{place} cannot be removed ({reason(error)})",
                why="tokens of records are there, which are as sensitive as the records",
                fix="run this as the user whose folder it is, or remove it by hand",
            ) from error


def rewritten(place: Path) -> Path:
    """Where what is prepared in a place is written anew, before it takes that place."""
    return place.with_name(f"{place.name}.new")


def lock_of(place: Path) -> Path:
    """What is held by whoever prepares records there, or rewrites them."""
    return place.with_name(f".{place.name}.lock")


def is_preparing(folder: Path) -> bool:
    """Whether a process prepares records in ``folder``. Raises StorageError."""
    return any(is_held(lock_of(place)) for place in places(folder))


def _opened(place: Path) -> Prepared | None:
    try:
        found = json.loads((place / FOUND).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{place / FOUND} is damaged or cannot be read ({reason(error)})",
            why="it says what was left out of the prepared records",
            fix="remove the folder around it, and prepare them again: grandrounds client prepare",
        ) from error
    quarantine = Quarantine()
    for position, why in found["set_aside"]:
        quarantine.add(position, why)
    return Prepared(store=Store.open(place), quarantine=quarantine, cut=found["cut"], lost=found["lost"])
