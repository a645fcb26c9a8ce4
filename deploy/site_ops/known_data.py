"""Which site's the records are, among the sites that a user of this machine made: a second one is a second budget."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import platformdirs
from pydantic import TypeAdapter

from ...client.site.folder import SiteFolder
from ...common.errors import StorageError, StudyError
from ...common.system.files import write_atomically
from ...common.system.locks import in_turn

_NAME: Final = "sites.json"  # a site's folder by the file of its records


@contextmanager
def claimed(data: Path, site: SiteFolder, *, new_budget: bool) -> Iterator[None]:
    """Make a site of the records meanwhile; then they are this site's.

    Raises StudyError where they are another site's, whether its folder is still there or not, unless they are said to
    have a ``new_budget``; and StorageError. Copies, other users' sites and those of other machines are not seen.
    """
    place = Path(platformdirs.user_state_dir("grandrounds", appauthor=False)) / _NAME
    with in_turn(place.with_suffix(".lock")):
        known = _read(place)
        if not new_budget:
            _check_unclaimed(known, data, str(site.path.resolve()))
        yield
        known |= {str(path.resolve()): str(site.path.resolve()) for path in site.settings().data.paths}
        write_atomically(place, json.dumps(known, indent=2).encode(), mode=0o600)


def _check_unclaimed(known: Mapping[str, str], data: Path, site: str) -> None:
    for records, owner in known.items():
        if owner != site and _is_one_file(data, Path(records)):
            raise StudyError(
                f"{data} has the records of the site in {owner}",
                why="a second site would give their patients a second budget, and nobody would add up the two",
                fix=f"join studies with that one: grandrounds client join {owner} study.zip; if nothing was ever "
                "released of these records, as after a trial, say so: --new-budget",
            )


def _is_one_file(data: Path, known: Path) -> bool:
    with suppress(OSError):  # one of them is gone, or not for this user
        return data.samefile(known)
    return data.resolve() == known


def _read(place: Path) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(place.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{place} is damaged or cannot be read",
            why="it says which records have a site, and so a budget, already",
            fix="repair it by hand: a JSON object with a site's folder by the file of its records",
        ) from error
