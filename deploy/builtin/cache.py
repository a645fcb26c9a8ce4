"""Folders that are made once and stay under the user's cache folder (``XDG_CACHE_HOME`` moves it)."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from ...common.errors import StorageError


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache, which ``build`` fills at the first call.

    It appears whole or not at all: it is built under another name and renamed, one process at a time.
    """
    cache = Path(platformdirs.user_cache_dir("grandrounds", appauthor=False))
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():  # another process built it while this one waited
                return folder
            partial = cache / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror or error})",
            why="the built-in data and model are made once and kept there",
            fix="free about 600 MB, or set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return folder
