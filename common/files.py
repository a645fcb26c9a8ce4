"""Files that are written whole or not at all."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from .errors import StorageError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, also after a crash, sees the old content or all of the new.

    The bytes are fsynced before the rename and the folder after it. Raises StorageError, leaving nothing behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                # The temporary file is private (0600); what it replaces is for whoever may read the folder.
                os.fchmod(file.fileno(), 0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            why="the study's results and its progress are kept there",
            fix="free space or choose another folder; what was written before is whole",
        ) from error
