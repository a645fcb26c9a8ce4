"""What a finished study leaves, as a site keeps it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ...common.crypto.identity import sha256
from ...common.errors import StorageError
from ...common.system.content import Content, Stored
from ...common.system.files import make_folder, rename_folder, write_atomically


def keep_results(folder: Path, files: Mapping[str, Content]) -> None:
    """Have the files of a finished study, by their paths, in ``folder``, whatever was there; all of them, or none.

    Only for the process that holds the site's state. Where they are there, nothing is changed. Raises StorageError.
    """
    for unfinished in folder.parent.glob(f".{folder.name}-*"):  # of a worker that was killed meanwhile
        shutil.rmtree(unfinished, ignore_errors=True)
    if all(_holds(folder / name, content) for name, content in files.items()):
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_results(folder, files)


def write_results(folder: Path, files: Mapping[str, Content]) -> None:
    """Write the files of a finished study, by their paths, to a new folder: all of them are there afterwards, or none.

    Raises StorageError, also where ``folder`` has content.
    """
    try:
        make_folder(folder.parent)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
            whole = Path(unfinished) / folder.name
            for name, content in files.items():
                write_atomically(whole / name, content)
            rename_folder(whole, folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}",
            why="what a study leaves belongs together, and nothing of another one is overwritten",
            fix="free space, or name a new folder",
        ) from error


def _holds(path: Path, content: Content) -> bool:
    try:
        return sha256(Stored.open(path)) == sha256(content)
    except OSError:  # what cannot be read is to be written anew
        return False
