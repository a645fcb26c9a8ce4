"""The Flower app of a deployment: an archive without code, whose parts are the installed package's."""

import io
import tomllib
import zipfile
from dataclasses import replace
from importlib import import_module

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from support.process.resident_process import SITE, ResidentProcess, ones
from support.study.federation import Federation, small_study

from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import FIELD, RECORD
from grandrounds.deploy.flower.archive import app_folder
from grandrounds.deploy.flower.client_app import app
from grandrounds.deploy.simulation.local_grid import LocalGrid


def test_the_archive_has_no_code():
    archive = build_fab_from_disk(app_folder())
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        assert set(files.namelist()) == {"pyproject.toml", ".info/CONTENT"}
    assert archive == build_fab_from_disk(app_folder()), "sites pin its hash"


def test_its_parts_are_the_installed_package_s():
    project = tomllib.loads((app_folder() / "pyproject.toml").read_text())
    for kind, of in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, _, name = project["tool"]["flwr"]["app"]["components"][kind].partition(":")
        assert isinstance(getattr(import_module(module), name), of)


def test_under_flower_s_own_executor_the_worker_at_the_node_s_socket_answers(tmp_path):
    federation = Federation(study=small_study(), dimension=7, release=ones)
    with ResidentProcess(tmp_path, federation) as worker:
        worker.start()
        grid = LocalGrid({SITE: at_a_node(socket=str(worker.socket))}, lambda site, message: False)
        request = RecordDict({RECORD: ConfigRecord({FIELD: bytes(federation.attempt().messages()[SITE][:])})})
        (pushed,) = grid.push_messages([Message(request, grid.nodes[SITE], MessageType.TRAIN)])
        (reply,) = grid.pull_messages([pushed])
    answer = reply.content.config_records[RECORD][FIELD]
    assert isinstance(answer, bytes)
    assert Envelope.parse(answer).exchange == "advert"


def at_a_node(**config):
    """The app as Flower calls it at a node with this configuration."""
    return lambda message, context: app(message, replace(context, node_config=config))
