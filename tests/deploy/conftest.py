"""A study that ran to its end, once for all tests of verification."""

import shutil
from pathlib import Path

import pytest
from support.study.verified_study import SmallStudy, ran


@pytest.fixture(scope="session")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallStudy, Path]:
    """A study that ran to its end, and its folder."""
    study, folder = ran(), tmp_path_factory.mktemp("study")
    study.close(folder)
    return study, folder


@pytest.fixture
def study(closed: tuple[SmallStudy, Path]) -> SmallStudy:
    """The study that ``folder`` is of; it is not to be changed."""
    return closed[0]


@pytest.fixture
def folder(closed: tuple[SmallStudy, Path], tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return shutil.copytree(closed[1], tmp_path / "copy")
