"""A site's prepared records: tokenised once for all studies that read them alike, and opened in seconds."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from ...common.crypto.identity import canonical_json
from ...common.data.preparation import Preparation, Prepared
from ...common.data.quarantine import Quarantine
from ...common.data.store import Store
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StorageError, reason
from ...common.model.base_folder import configuration_sha256
from ...common.study.study import DataSection
from ...common.system.files import make_private_folder, write_atomically
from ...common.system.locks import in_turn
from ..minimisation.minimiser import Minimiser
from .folder import SiteSettings

_FORMAT: Final = 1  # of what stands in a store: raised where the same records would make another one
_FOUND: Final = "found.json"  # written last: a store without it is not whole
_NAME_DIGITS: Final = 16

Progress = Callable[[int], None]


def prepared(
    folder: Path,
    settings: SiteSettings,
    data: DataSection,
    *,
    vocabulary_size: int | None,
    minimiser: Minimiser | None,
    again: bool = False,
    progress: Progress = lambda records: None,
) -> Prepared:
    """The records that site.toml names, as a study with these ``data`` reads them, in ``folder``.

    They are opened where nothing has changed that they follow from, and else prepared, gone on with where that was
    interrupted; ``again`` prepares them in any case. ``vocabulary_size`` is the model's, and the
    ``minimiser`` applies the policy's rules. One process does at a time. Raises DataError, ModelError, StudyError and
    StorageError.
    """
    key = _key(settings, data, vocabulary_size, minimiser)
    place = folder / key[:_NAME_DIGITS]
    make_private_folder(folder)
    with in_turn(folder / f".{place.name}.lock"):
        if again:
            shutil.rmtree(place, ignore_errors=True)
        found = None if again else _opened(place)
        return found or _prepare(place, settings, data, vocabulary_size, minimiser, progress)


def is_prepared(
    folder: Path,
    settings: SiteSettings,
    data: DataSection,
    *,
    vocabulary_size: int | None,
    minimiser: Minimiser | None,
) -> bool:
    """Whether they are there to be opened. Raises DataError where the source cannot be looked at."""
    return (folder / _key(settings, data, vocabulary_size, minimiser)[:_NAME_DIGITS] / _FOUND).exists()


def _prepare(
    place: Path,
    settings: SiteSettings,
    data: DataSection,
    vocabulary_size: int | None,
    minimiser: Minimiser | None,
    progress: Progress,
) -> Prepared:
    tokenisation = Tokenisation.load(str(settings.model), vocabulary_size=vocabulary_size)
    preparation = Preparation(
        tokenisation=tokenisation,
        max_tokens=data.max_tokens,
        overlap=data.overlap,
        similar=settings.similar_identifiers,
        minimise=minimiser,
        keep=minimiser.keep if minimiser and minimiser.rules.chooses_records else None,
    )
    try:
        make_private_folder(place)
        made = preparation.of_source(settings.data, place, progress=progress)
    except OSError as error:
        raise StorageError(
            f"records cannot be prepared in {place} ({error.strerror})",
            why="a study trains on records that were tokenised beforehand",
            fix="free space there, and repeat the command: what was done is kept",
        ) from error
    said = {"cut": made.cut, "set_aside": [[one.position, one.reason] for one in made.quarantine.set_aside]}
    write_atomically(place / _FOUND, json.dumps(said).encode(), mode=0o600)
    return made


def _opened(place: Path) -> Prepared | None:
    try:
        found = json.loads((place / _FOUND).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{place / _FOUND} is damaged or cannot be read ({reason(error)})",
            why="it says what was left out of the prepared records",
            fix="remove the folder around it, and prepare them again: grandrounds client prepare",
        ) from error
    quarantine = Quarantine()
    for position, why in found["set_aside"]:
        quarantine.add(position, why)
    return Prepared(store=Store.open(place), quarantine=quarantine, cut=found["cut"])


def _key(settings: SiteSettings, data: DataSection, vocabulary_size: int | None, minimiser: Minimiser | None) -> str:
    """SHA-256 of all that the store follows from: source, tokenizer and template, lengths, rules, programs."""
    said: dict[str, Any] = {
        "format": _FORMAT,
        "programs": [version("transformers"), version("tokenizers")],
        "source": settings.data.fingerprint(),
        "similar": settings.similar_identifiers,
        "model": configuration_sha256(settings.model),
        "vocabulary": vocabulary_size,
        "lengths": [data.max_tokens, data.overlap],
        "rules": minimiser and minimiser.fingerprint,
    }
    return sha256(canonical_json(said)).hexdigest()
