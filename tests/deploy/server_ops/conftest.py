"""A server whose study is fixed, made once."""

import shutil

import pytest
from support.study.enrolled_server import SITES, card, initialised, write_study

from grandrounds.deploy.server_ops import bundling
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.server.run.server_folder import ServerFolder


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """Its sites never come."""
    folder = initialised(tmp_path_factory.mktemp("bundled") / "server")
    server_operator.enroll(folder, *(card(folder.path.parent, name) for name in SITES))
    write_study(folder)
    bundling.bundle(folder)
    return folder


@pytest.fixture
def folder(bundled, tmp_path):
    """The same server, to be changed."""
    return ServerFolder(shutil.copytree(bundled.path, tmp_path / "server"))
