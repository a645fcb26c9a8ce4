"""One hash for all files of the installed program: what a study pins, and what a wheel is compared by.

It is the hash of what ``sha256sum`` prints of them, in the order of their names' bytes, so that anyone can compute it
without this program, in the folder that holds the package, or from the wheel, which is a zip archive:

    find grandrounds -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

This file uses the standard library alone, and nothing else of the package: it is asked before anything else is trusted.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

PACKAGE: Final = "grandrounds"
# All that a wheel has. A checkout has more beside it, such as the tests.
_FOLDERS: Final = ("client", "common", "deploy", "server")
_FILES: Final = ("*.py", "py.typed")
# Of a wheel, in the one folder that says what it is; no such name leads out of it.
_METADATA: Final = re.compile(r"grandrounds-[^/]+\.dist-info/(licenses/)?[A-Za-z][\w-]*(\.txt)?")
_CACHE: Final = "__pycache__"  # Python's own, made from the sources
_SYMLINK: Final = "symlink"  # where a hash would stand: no wheel has one, whatever it points at


def package_sha256(root: Path) -> str:
    """SHA-256 over the package's files below ``root``, installed or in a checkout, in hex. Raises OSError."""
    return _sha256(
        {f"{PACKAGE}/{path.relative_to(root).as_posix()}": _file_sha256(path) for path in package_files(root)}
    )


def wheel_sha256(wheel: Path) -> str:
    """The ``package_sha256`` of what a wheel installs, which is all that is in it beside its own metadata.

    Raises OSError, ``zipfile.BadZipFile``, and ValueError where it would install anything else: a ``.pth`` beside the
    package runs in every program of that Python.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        package = [name for name in names if name.startswith(f"{PACKAGE}/")]
        metadata = {name for name in names if _METADATA.fullmatch(name)}
        others = sorted({*names} - {*package} - metadata)
        if others or len({*names}) != len(names) or len({name.partition("/")[0] for name in metadata}) > 1:
            raise ValueError(f"beside {PACKAGE} and its metadata there is {', '.join(others) or 'some of it twice'}")
        return _sha256({name: hashlib.sha256(archive.read(name)).hexdigest() for name in package})


@cache
def running_sha256() -> str:
    """The ``package_sha256`` of the program that runs, as it is when first asked for. Raises OSError."""
    return package_sha256(Path(__file__).parents[2])


def package_files(root: Path) -> Iterator[Path]:
    """The package's files below ``root``: all that its wheel has, and nothing that stands beside them in a checkout."""
    for pattern in _FILES:
        yield from root.glob(pattern)
    for name in _FOLDERS:
        yield from _below(root / name)


def _below(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
    elif path.name != _CACHE:
        for inner in path.iterdir():
            yield from _below(inner)


def _file_sha256(path: Path) -> str:
    return _SYMLINK if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256(files: Mapping[str, str]) -> str:
    lines = sorted((os.fsencode(name), found) for name, found in files.items())
    return hashlib.sha256(b"".join(found.encode() + b"  " + name + b"\n" for name, found in lines)).hexdigest()
