"""Tests run in parallel processes: one thread each, set before anything loads torch; what waits for others is first."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until all files are loaded: what they load stays, and searching it for garbage is a quarter of the time
# A busy machine is no falsifying example. A search for one is `make soak`'s, which goes further each time.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("tests")
# In this order: tests that wait for real deployments, beside which others compute; files that are long; and the rooms,
# of which the last are short, so that no process is left alone with much.
TESTS = Path(__file__).parent
FIRST = (TESTS / "end_to_end", TESTS)


@pytest.fixture(scope="session", autouse=True)
def _sites_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No site of a test is noted among those of whoever runs it."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files that wait, and those that are long, to the front."""
    items.sort(key=lambda item: FIRST.index(item.path.parent) if item.path.parent in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """Everything is loaded."""
    gc.freeze()
    gc.enable()
