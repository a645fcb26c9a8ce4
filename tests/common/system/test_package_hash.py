"""The hash of the program's files: any of them changes it, nothing else does, and coreutils computes the same."""

import hashlib
import shutil
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from support.places import ROOT

from grandrounds.common.system.package_hash import package_sha256, running_sha256, wheel_sha256

FOLDERS = ("client", "common", "deploy", "server")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A small package that looks as an installed one does."""
    root = tmp_path / "grandrounds"
    for name in ("__init__.py", "py.typed", *(f"{folder}/__init__.py" for folder in FOLDERS), "deploy/cli/main.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


def edited(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def linked(path: Path) -> None:
    """The same bytes, by way of a link."""
    elsewhere = path.parents[2] / "elsewhere.py"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def linked_folder(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


CHANGES = {
    "a changed byte": lambda root: edited(root / "common/__init__.py"),
    "a changed byte far down": lambda root: edited(root / "deploy/cli/main.py"),
    "a changed marker": lambda root: edited(root / "py.typed"),
    "a missing file": lambda root: (root / "server/__init__.py").unlink(),
    "another module": lambda root: (root / "client/extra.py").write_text(""),
    "another module at the top": lambda root: (root / "extra.py").write_text(""),
    "another file": lambda root: (root / "deploy/extra.so").write_text(""),
    "a compiled module without a source": lambda root: (root / "common/extra.pyc").write_text(""),
    "a module in another folder": lambda root: (root / "deploy/cli/main.py").rename(root / "deploy/main.py"),
    "a module of another name": lambda root: (root / "deploy/cli/main.py").rename(root / "deploy/cli/app.py"),
    "two files exchanged": lambda root: exchanged(root / "client/__init__.py", root / "server/__init__.py"),
    "a link to a file": lambda root: linked(root / "client/__init__.py"),
    "a link to a folder": lambda root: linked_folder(root / "server"),
    "a link that leads nowhere": lambda root: (root / "server/extra.py").symlink_to("nowhere"),
}


def exchanged(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_package_changes_its_hash(installed: Path, change: str) -> None:
    before = package_sha256(installed)
    CHANGES[change](installed)
    assert package_sha256(installed) != before


def test_what_a_checkout_and_python_put_beside_the_package_is_not_counted(installed: Path) -> None:
    before = package_sha256(installed)
    for name in ("tests/test_a.py", ".venv/lib/a.py", "build/lib/a.py", "common/__pycache__/a.pyc", "pyproject.toml"):
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_text("")
    assert package_sha256(installed) == before


def test_where_and_when_it_is_installed_does_not_matter(installed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(installed, tmp_path / "elsewhere" / "another-name", copy_function=shutil.copyfile)
    assert package_sha256(copy) == package_sha256(installed)


def test_a_wheel_has_the_hash_of_what_it_installs(installed: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted(installed.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(installed.parent))
        archive.writestr("grandrounds-1.dist-info/METADATA", "")
    assert wheel_sha256(wheel) == package_sha256(installed)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("grandrounds/tests/extra.py", "")
    assert wheel_sha256(wheel) != package_sha256(installed)


BESIDE = {
    "what runs in every program": ["extra.pth"],
    "another package": ["another/__init__.py"],
    "a module": ["extra.py"],
    "scripts": ["grandrounds-1.data/scripts/python"],
    "other metadata": ["another-1.dist-info/METADATA"],
    "metadata twice": ["grandrounds-2.dist-info/METADATA"],
    "by way of its metadata": ["grandrounds-1.dist-info/../extra.pth"],
    "by way of the package": ["grandrounds/../extra.pth"],
    "a package of a longer name": ["grandrounds_extra/__init__.py"],
    "a package of another spelling": ["Grandrounds/__init__.py"],
    "the first of two files": ["grandrounds/__init__.py"],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("beside", BESIDE)
def test_what_a_wheel_installs_beside_the_package_is_never_passed_over(
    installed: Path, tmp_path: Path, beside: str
) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in installed.rglob("*"):
            archive.write(path, path.relative_to(installed.parent))
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"):
            archive.writestr(f"grandrounds-1.dist-info/{name}", "")
    assert wheel_sha256(wheel) == package_sha256(installed)
    with zipfile.ZipFile(wheel, "a") as archive:
        for name in BESIDE[beside]:
            archive.writestr(name, "# __init__.py\n")
    with suppress(ValueError):  # with which it is refused
        assert wheel_sha256(wheel) != package_sha256(installed)


def test_coreutils_compute_the_same_of_the_program_that_runs(tmp_path: Path) -> None:
    copy = tmp_path / "grandrounds"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name)
    for path in [*ROOT.glob("*.py"), ROOT / "py.typed"]:
        shutil.copy(path, copy / path.name)
    command = "find grandrounds -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"
    # The command of the module's docstring, but for its last step.
    printed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True).stdout  # noqa: S607
    assert hashlib.sha256(printed).hexdigest() == package_sha256(ROOT)
    assert len(printed.splitlines()) > 100


def test_the_running_program_s_hash_is_that_of_its_own_files() -> None:
    assert running_sha256() == package_sha256(ROOT)
