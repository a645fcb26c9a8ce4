"""Reading a stranger's folder: nothing is followed, waited for or read without end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.study.verification import FILES, WHOLE, refused

from grandrounds.common.errors import StorageError
from grandrounds.common.study.artefacts import LEDGER, REPORT, RESULTS
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status


def as_link(path: Path) -> None:
    moved = path.rename(path.parents[1] / f"moved-{path.name}")
    path.symlink_to(moved)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_far_too_large(path: Path) -> None:
    os.truncate(path, 1 << 33)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (as_link, "a symbolic link"),
        (as_device, "a symbolic link"),
        (as_pipe, "no regular file"),
        (as_folder, "no regular file"),
        (as_far_too_large, "larger than"),
        (Path.unlink, "missing"),
    ],
)
@pytest.mark.parametrize("path", [LEDGER, *RESULTS])
def test_what_is_no_file_of_the_study_is_neither_followed_nor_waited_for(
    folder: Path, path: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder / path)
    verdict = verify(folder)
    assert not verdict.holds
    wrong = [finding.detail for finding in verdict.findings if finding.status is Status.DISAGREES]
    assert any(path in detail and said in detail for detail in wrong), wrong
    assert not any("could not be checked" in detail for detail in wrong)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "hooks\x1b[2J.py", ".hidden"])
def test_anything_else_in_the_adapter_s_folder_is_refused(folder: Path, name: str) -> None:
    (folder / "adapter" / name).write_bytes(b"\x80\x04.")
    said = refused(folder, FILES)
    assert name.replace("\x1b", "�") in said and said.isprintable()


@pytest.mark.parametrize("name", ["adapter", "ledger"])
def test_a_folder_that_is_a_link_is_refused(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "elsewhere")
    (folder / name).symlink_to("elsewhere")
    assert not verify(folder).holds


def test_what_is_no_folder_cannot_be_verified(folder: Path, tmp_path: Path) -> None:
    for path in (folder / REPORT, tmp_path / "missing", Path("a\0name")):
        with pytest.raises(StorageError, match="cannot be read"):
            verify(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "missing" in refused(empty, WHOLE)
