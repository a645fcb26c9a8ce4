"""What the ServerApp of a deployment refuses before it sends a message."""

from dataclasses import replace

import pytest

from grandrounds.common.errors import StorageError, StudyError
from grandrounds.deploy.local_grid import SERVER_NODE, LocalGrid, local_context
from grandrounds.deploy.progress_file import Stopped
from grandrounds.deploy.server_app import app
from grandrounds.deploy.server_folder import ServerFolder


def run(**config):
    grid = LocalGrid({}, lambda site, message: False)
    app(grid, replace(local_context(SERVER_NODE, "server"), run_config=config))


@pytest.mark.parametrize("config", [{}, {"server": ""}, {"server": "a/relative/path"}, {"server": 7}])
def test_a_run_that_names_no_server_s_folder_is_refused(config):
    with pytest.raises(StudyError, match="names no server's folder"):
        run(**config)


def test_a_study_that_runs_is_left_to_the_process_that_runs_it(tmp_path):
    folder = ServerFolder(tmp_path)
    with folder.running(), pytest.raises(StudyError, match="runs already"):
        run(server=str(tmp_path))
    assert folder.progress.read()[0] == [], "the one that runs tells what happens"


def test_why_a_run_ended_is_told_to_who_follows_it(tmp_path):
    with pytest.raises(StorageError) as refused:
        run(server=str(tmp_path))
    told = ServerFolder(tmp_path).progress.read()[0][-1]
    assert told == Stopped(what=refused.value.what, why=refused.value.why, fix=refused.value.fix)
    assert not ServerFolder(tmp_path).is_running
