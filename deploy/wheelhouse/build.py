"""A folder from which the program is installed on a machine without a network, each file compared by its hash."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ...common.crypto.identity import sha256
from ...common.errors import StorageError, StudyError
from ...common.system.files import make_folder, write_atomically
from ...common.system.package_hash import PACKAGE, package_files, package_sha256, wheel_sha256
from .bill_of_materials import bill_of_materials
from .constraints import CONSTRAINTS, Pin, read_constraints
from .wheel import Wheel

WHEELS: Final = "wheels"
REQUIREMENTS: Final = "requirements.txt"
BILL: Final = "bom.cdx.json"
INSTALL: Final = "INSTALL.md"
_CHECKOUT: Final = Path(__file__).parents[2]
_PROJECT: Final = ("pyproject.toml", "README.md", "LICENSE")
_TEMPORARY: Final = ".new-"
# The earliest date that a zip archive can hold: a wheel then has the same bytes whoever builds it, and when.
_BUILT_AT: Final = "315532800"
_OTHER_HASH: Final = re.compile(r"DO NOT MATCH THE HASHES.*?^ +(\S+)", re.DOTALL | re.MULTILINE)
_WITHOUT_WHEEL: Final = re.compile(r"No matching distribution found for ([^\s;]+)")
_ADDRESS: Final = re.compile(r"\S+://\S+")
_MACHINE: Final = (
    "import platform as p, sysconfig as s; "
    "print('Python', s.get_python_version(), 'on', s.get_platform(), 'with', *filter(None, p.libc_ver()))"
)
_INSTALL: Final = """# Installing grandrounds {version} without a network

For {machine}. A C library older than that may have no use for some of the wheels.

    python3 -m venv /opt/grandrounds
    /opt/grandrounds/bin/pip install --no-index --find-links wheels --require-hashes -r requirements.txt
    /opt/grandrounds/bin/grandrounds --help

`pip` refuses a file whose hash is not in requirements.txt. Compare that file's own, `sha256sum requirements.txt`, with
whoever made this folder. bom.cdx.json names every package with version, hash and licence (CycloneDX 1.6).

The program's files have SHA-256
{package_sha256}.
A study's manifest names it, as `grandrounds client join` shows, and a site refuses to run another.
"""


def make_wheelhouse(
    folder: Path,
    *,
    wheel: Path | None = None,
    extras: Sequence[str] = (),
    python: Path | None = None,
    constraints: Path | None = None,
) -> list[str]:
    """Write ``folder`` with wheels of the program and all that it needs, for a machine like this one; what is there.

    The program is ``wheel``, or else is built from the checkout that runs. ``python`` is the interpreter that the
    packages are for. ``pip`` takes them from where it is set up to, and no place of an index is written down; a file
    whose hash is not in ``constraints``, by default the checkout's, is refused. A program that was installed from a
    wheel has none: what pip finds is then compared with nothing, and this is said. What was in the folder from before
    is replaced. Raises StudyError and StorageError.
    """
    if constraints is None and (_CHECKOUT / CONSTRAINTS).exists():
        constraints = _CHECKOUT / CONSTRAINTS
    pins = None if constraints is None else read_constraints(constraints)
    _prepare(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        fetched = Path(temporary, WHEELS)
        _download(wheel or build_wheel(Path(temporary)), extras, python, pins, fetched)
        # Without its requirements no folder is taken for a whole one.
        (folder / REQUIREMENTS).unlink(missing_ok=True)
        shutil.rmtree(folder / WHEELS, ignore_errors=True)
        fetched.rename(folder / WHEELS)
    wheels = sorted(map(Wheel.read, (folder / WHEELS).iterdir()), key=lambda each: each.name)
    (program,) = (each for each in wheels if each.name == PACKAGE)
    files = _files_sha256(program.path)
    write_atomically(folder / BILL, bill_of_materials(program, [each for each in wheels if each is not program]))
    text = _INSTALL.format(version=program.version, machine=_machine(python), package_sha256=files)
    write_atomically(folder / INSTALL, text.encode())
    requirements = "".join(f"{each.name}=={each.version} --hash=sha256:{each.sha256}\n" for each in wheels).encode()
    write_atomically(folder / REQUIREMENTS, requirements)
    size_mib = sum(each.path.stat().st_size for each in wheels) / 2**20
    return [
        f"{len(wheels)} wheels, {size_mib:.0f} MiB, in {folder}; {INSTALL} there says how they are installed",
        f"the program's files, as a study's manifest names them: {files}",
        f"SHA-256 of {REQUIREMENTS}, to be compared where it is installed: {sha256(requirements)}",
        *([] if pins else [f"What pip found was compared with no hash: there is no {CONSTRAINTS} here"]),
    ]


def _prepare(folder: Path) -> None:
    """Make the folder. Raises StudyError where it has something that no wheelhouse has: what is in it is replaced."""
    try:
        make_folder(folder)
        others = {path.name for path in folder.iterdir()} - {WHEELS, REQUIREMENTS, BILL, INSTALL}
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be used: {error.strerror}",
            why="the wheels are collected there",
            fix="choose another folder",
        ) from error
    if any(not name.startswith(_TEMPORARY) for name in others):
        raise StudyError(
            f"{folder} holds other files: {', '.join(sorted(others)[:3])}",
            why="a wheelhouse is carried elsewhere as a whole",
            fix="choose a folder of its own",
        )
    for name in others:  # of a call that was killed
        shutil.rmtree(folder / name)


def build_wheel(folder: Path) -> Path:
    """The wheel of the checkout that runs, built below ``folder``; the same bytes whoever builds it, and when.

    It is built from a copy, since setuptools uses what it left where it built before. Raises StudyError.
    """
    if not (_CHECKOUT / _PROJECT[0]).exists():
        raise StudyError(
            "this program was not installed from a checkout",
            why="its wheel is built from its sources",
            fix="give the wheel that it was installed from: --wheel FILE",
        )
    # Absolute: what looks like a name to pip, it takes for one of an index, and runs what that has.
    source, built = folder.absolute() / "source", folder / "built"
    for path in (*package_files(_CHECKOUT), *(_CHECKOUT / name for name in _PROJECT)):
        copy = source / path.relative_to(_CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o644)  # which a wheel records: its bytes would follow the umask of whoever cloned the sources
    # With the setuptools that is here, by its hash: an environment of its own would get one unseen.
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    (wheel,) = built.iterdir()
    if _files_sha256(wheel) != package_sha256(_CHECKOUT):
        raise StudyError(
            "the wheel has other files than the checkout that it was built from",
            why="a site that is installed from it could not take part in a study that is bundled here",
            fix="name what is missing in pyproject.toml (packages, package-data), or remove what is no part of it",
        )
    return wheel


def _files_sha256(wheel: Path) -> str:
    """``wheel_sha256``. Raises StudyError where the wheel would install more than the program."""
    try:
        return wheel_sha256(wheel)
    except Exception as error:  # as ``Wheel.read``
        raise StudyError(
            f"{wheel} holds other than the program: {error}",
            why="what stands beside the program is under no study's hash, and may run before it, as root",
            fix=f"get the wheel of {PACKAGE} anew from where it is published, or build it from the sources",
        ) from error


def _download(
    own: Path, extras: Sequence[str], python: Path | None, pins: Mapping[str, Pin] | None, folder: Path
) -> None:
    """Put the program's wheel and those of all that it needs there, each with a hash of ``pins``."""
    if Wheel.read(own).name != PACKAGE:
        raise StudyError(f"{own} is not a wheel of {PACKAGE}", why="that is what is installed", fix="give its wheel")
    _files_sha256(own)
    wanted = str(own.absolute()) + (f"[{','.join(extras)}]" if extras else "")
    # Sources would be built where they are installed, with whatever is there.
    download = ("download", "--only-binary", ":all:", "--dest")
    if pins is None:
        _pip(*download, folder, wanted, python=python)
        return
    # pip takes no hashes for what it resolves: once it has chosen, what it chose is taken again, each by its hash.
    chosen, listed = folder.with_name("chosen"), folder.with_name("listed.txt")
    listed.write_text("".join(pin.exactly() + "\n" for pin in pins.values()))
    _pip(*download, chosen, "--constraint", listed, wanted, python=python)
    names = {Wheel.read(path).name for path in chosen.iterdir()} - {PACKAGE}
    if unknown := names - pins.keys():
        raise StudyError(
            f"{CONSTRAINTS} has no hash of {', '.join(sorted(unknown))}",
            why="a file is only taken if it is the one with which the tests ran",
            fix="leave out the extra that needs it, or add it to pyproject.toml and call `make upgrade`",
        )
    listed.write_text("".join(pins[name].hashed() + "\n" for name in sorted(names)))
    alone = ("--no-deps", "--no-index", "--find-links", chosen, "--require-hashes", "--requirement", listed)
    _pip(*download, folder, *alone, python=python)
    shutil.copy(own, folder)


def _pip(*arguments: str | Path, python: Path | None = None) -> None:
    interpreter = () if python is None else ("--python", python)
    command = [sys.executable, "-m", "pip", *interpreter, "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "SOURCE_DATE_EPOCH": _BUILT_AT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    if other := _OTHER_HASH.search(done.stderr):
        raise StudyError(
            f"pip found a file of {other.group(1)} whose hash is not in {CONSTRAINTS}",
            why="it is another build than those with which the tests ran, or was altered on its way",
            fix="have pip ask an index that has the right one: PIP_INDEX_URL, PIP_FIND_LINKS",
        )
    if missing := _WITHOUT_WHEEL.search(done.stderr):
        raise StudyError(
            f"{missing.group(1)} has no wheel for this machine, at the places that pip is set up to ask",
            why="a machine without a network cannot build it from sources",
            fix="make one with `pip wheel` and name its folder in PIP_FIND_LINKS; or leave out the extra that needs it",
        )
    # An index's address may hold a password.
    said = [_ADDRESS.sub("…", line) for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise StudyError(
        f"pip {arguments[0]} failed: {' '.join(said)[:400]}",
        why="it finds and fetches what the program needs",
        fix="have pip ask an index that has it, or a folder of wheels: PIP_INDEX_URL, PIP_FIND_LINKS",
    )


def _machine(python: Path | None) -> str:
    """What the wheels are for, in words."""
    command = [str(python or sys.executable), "-c", _MACHINE]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
