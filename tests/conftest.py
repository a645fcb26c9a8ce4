"""Tests run in parallel processes: one thread each, set before anything loads torch; what waits for others is first."""

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no falsifying example.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Its tests wait for real deployments: beside them others compute, and if they were last, nothing would be left to.
WAITING = Path(__file__).parent / "end_to_end"


@pytest.fixture(scope="session", autouse=True)
def _sites_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No site of a test is noted among those of whoever runs it."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files that wait to the front."""
    items.sort(key=lambda item: WAITING not in item.path.parents)
