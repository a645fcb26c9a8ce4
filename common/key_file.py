"""A signing key in a file: 32 bytes in hex, which no other user may read."""

import os
import stat
from pathlib import Path

from .errors import StorageError
from .files import write_missing
from .identity import Identity


def make_key(path: Path) -> None:
    """Make a key, unless there is one. Raises StorageError."""
    write_missing(path, lambda: Identity.generate().secret.hex().encode(), mode=0o600)


def read_key(path: Path, *, whose: str, instead: str) -> Identity:
    """The key, in ``whose`` name its holder speaks. Raises OSError and ValueError where there is none.

    Raises StorageError if other users may read it; ``instead`` says what replaces one that somebody may have read.
    """
    with path.open(encoding="ascii") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise StorageError(
                f"{path} is open to other users",
                why=f"whoever has the key can speak in {whose} name",
                fix=f"chmod 600 {path}, or make {instead} if somebody may have read it",
            )
        return Identity.from_bytes(bytes.fromhex(file.read(128).strip()))
