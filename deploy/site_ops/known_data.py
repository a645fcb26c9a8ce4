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
from ...common.sources.files import found_files, is_glob
from ...common.sources.source import DataSource
from ...common.system.files import write_atomically
from ...common.system.locks import in_turn

_NAME: Final = "sites.json"  # a site's folder by the places of its records


@contextmanager
def claimed(data: DataSource, site: SiteFolder, *, new_budget: bool) -> Iterator[None]:
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
        known |= dict.fromkeys(_places(site.settings().data), str(site.path.resolve()))
        write_atomically(place, json.dumps(known, indent=2).encode(), mode=0o600)


def _check_unclaimed(known: Mapping[str, str], data: DataSource, site: str) -> None:
    for place in _places(data):
        for records, owner in known.items():
            if owner != site and _is_one(place, records):
                raise StudyError(
                    f"{place} has records of the site in {owner}",
                    why="a second site would give their patients a second budget, and nobody would add up the two",
                    fix=f"join studies with that one: grandrounds client join {owner} study.zip; if nothing was ever "
                    "released of these records, as after a trial, say so: --new-budget",
                )


def _places(data: DataSource) -> list[str]:
    """Where records are: files and folders, those that a glob finds, or a database of a server."""
    if data.omop and not data.omop.files:
        return [data.omop.place]
    files = [file.path for path in data.files if is_glob(path) for file in found_files([path], [])]
    files += [path for path in data.files if not is_glob(path)]
    return [str(path.resolve()) for path in (*files, *(data.omop.files if data.omop else ()))]


def _is_one(place: str, known: str) -> bool:
    """Whether the two are one file or folder, or one lies within the other."""
    one, other = Path(place), Path(known)
    with suppress(OSError):  # one of them is gone, or not for this user
        if one.samefile(other):
            return True
    return one == other or one in other.parents or other in one.parents


def _read(place: Path) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(place.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{place} is damaged or cannot be read",
            why="it says which records have a site, and so a budget, already",
            fix="repair it by hand: a JSON object with a site's folder by the places of its records",
        ) from error
