"""Which site's the records are, among the sites that a user of this machine made: a second one is a second budget."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

import platformdirs
from pydantic import TypeAdapter

from ...common.errors import StorageError, StudyError
from ...common.system.files import write_atomically
from ...common.system.locks import in_turn

_NAME: Final = "sites.json"  # a site's folder by the file of its records


def check_unclaimed(data: Path, site: Path) -> None:
    """Raises StudyError where the records are another site's, whether its folder is still there or not.

    Copies, other users' sites and those of other machines are not seen.
    """
    for known, owner in _known().items():
        if owner != str(site.resolve()) and _is_one_file(data, Path(known)):
            raise StudyError(
                f"{data} has the records of the site in {owner}",
                why="a second site would give their patients a second budget, and nobody would add up the two",
                fix=f"join studies with that one: grandrounds client join {owner} study.zip; if nothing was ever "
                "released of these records, as after a trial, say so: --new-budget",
            )


def claim(data: Path, site: Path) -> None:
    """From now on the records are this site's. Raises StorageError."""
    with in_turn(_place().with_suffix(".lock")):
        known = {**_known(), str(data.resolve()): str(site.resolve())}
        write_atomically(_place(), json.dumps(known, indent=2).encode(), mode=0o600)


def _is_one_file(data: Path, known: Path) -> bool:
    with suppress(OSError):  # one of them is gone, or not for this user
        return data.samefile(known)
    return data.resolve() == known


def _known() -> dict[str, str]:
    try:
        known = TypeAdapter(dict[str, str]).validate_json(_place().read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{_place()} is damaged or cannot be read",
            why="it says which records have a site, and so a budget, already",
            fix="repair it by hand: a JSON object with a site's folder by the file of its records",
        ) from error
    return known


def _place() -> Path:
    return Path(platformdirs.user_state_dir("grandrounds", appauthor=False)) / _NAME
