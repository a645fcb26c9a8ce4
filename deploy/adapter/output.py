"""What is made of an adapter appears whole under its name, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ...common.errors import StorageError
from ...common.system.files import make_folder


def require_absent(output: Path) -> None:
    """Raises StorageError where there is something of that name."""
    if output.exists() or output.is_symlink():
        raise StorageError(f"{output} exists", why="nothing is written over", fix="remove it, or choose another name")


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the disk of ``output``, to make in it what is then renamed. Raises StorageError."""
    from safetensors import SafetensorError

    try:
        make_folder(output.parent)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{output} cannot be written: {getattr(error, 'strerror', None) or error}",
            why="the whole model is written there, four bytes for each of its numbers",
            fix="free space, or choose a folder on another disk; nothing half-written is left",
        ) from error
