"""What the ServerApp of a deployment refuses before it sends a message."""

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from support.places import ROOT
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity, make_key
from grandrounds.common.errors import StorageError, StudyError
from grandrounds.common.ledger.entries import StudyClosed
from grandrounds.common.system.files import write_atomically
from grandrounds.common.system.processes import environment
from grandrounds.deploy.flower.archive import app_folder, app_sha256
from grandrounds.deploy.flower.server_app import app, enough_nodes
from grandrounds.deploy.simulation.local_grid import SERVER_NODE, LocalGrid, local_context
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.run.progress_file import Stopped
from grandrounds.server.run.server_folder import KEY, ServerFolder
from grandrounds.server.run.study_run import StudyRun

# A run as Flower's executor begins it, in an app's folder: the app, then the archive's hash and the server's folder.
RUN = """
import hashlib, sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.object_ref import load_app
app = load_app("grandrounds.deploy.flower.server_app:app", RuntimeError, Path(sys.argv[1]))
print(sys.modules["grandrounds"].__file__, "torch" in sys.modules)
from grandrounds.deploy.simulation.local_grid import LocalGrid, local_context
grid = LocalGrid({}, lambda site, message: False)
grid.set_run(replace(grid.run, fab_hash=hashlib.sha256(build_fab_from_disk(Path(sys.argv[1]))).hexdigest()))
app(grid, replace(local_context(1, "server"), run_config={"server": sys.argv[2]}))
"""


def run(config, archive=""):
    """A run of the app from the archive with this hash."""
    grid = LocalGrid({}, lambda site, message: False)
    grid.set_run(replace(grid.run, fab_hash=archive))
    app(grid, replace(local_context(SERVER_NODE, "server"), run_config=config))


@pytest.fixture
def folder(tmp_path):
    """A server's folder with a study, and no more of a server than is judged first."""
    folder = ServerFolder(tmp_path)
    study = small_study()
    keys = {site.name: Identity.generate() for site in study.sites}
    manifest = small_manifest(study, keys, Identity.generate(), dimension=7, app_sha256=app_sha256())
    folder.study.save_manifest(manifest)
    folder.write_settings('evaluation = "evaluation.jsonl"\n')
    make_key(folder.path / KEY)
    return folder


@pytest.mark.parametrize("config", [{}, {"server": ""}, {"server": "a/relative/path"}, {"server": 7}, {"server": "/"}])
def test_a_run_that_names_no_server_s_folder_is_refused_for_flwr_log_to_show(config, capfd):
    with pytest.raises(StudyError, match="is no server's folder"):
        run(config)
    assert "What to do: start it with `grandrounds server run" in capfd.readouterr().err


def test_a_study_that_runs_is_left_to_the_process_that_runs_it(folder):
    with folder.running(), pytest.raises(StudyError, match="runs already"):
        run({"server": str(folder.path)})
    assert folder.progress.read()[0] == [], "the one that runs tells what happens"


def test_an_archive_that_the_sites_did_not_pin_is_refused(folder):
    with pytest.raises(StudyError, match="archive is another"):
        run({"server": str(folder.path)}, archive="ab" * 32)


def test_the_archive_that_they_pinned_is_not(folder):
    with pytest.raises(StudyError, match="the model in"):  # which is judged next
        run({"server": str(folder.path)}, archive=app_sha256())


def test_a_study_of_other_code_than_what_runs_is_refused(folder):
    manifest = folder.study.manifest()
    folder.study.save_manifest(manifest.model_copy(update={"package_sha256": "ab" * 32}))
    with pytest.raises(StudyError, match=r"the study runs grandrounds .* of SHA-256 abab"):
        run({"server": str(folder.path)}, archive=app_sha256())


def test_a_changed_copy_of_the_package_in_an_archive_is_loaded_by_flower_and_refused(folder, tmp_path):
    copy = shutil.copytree(app_folder(), tmp_path / "app") / "grandrounds"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("client", "common", "deploy", "server"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "__init__.py").write_bytes((ROOT / "__init__.py").read_bytes() + b"# changed\n")
    command = [sys.executable, "-P", "-c", RUN, copy.parent, folder.path]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [str(copy / "__init__.py"), "False"], (
        "Flower prefers it to what is installed, and no model's libraries are loaded for a run that is refused"
    )
    assert "grandrounds: the study runs grandrounds" in ran.stderr
    assert not folder.is_running


def test_why_a_run_ended_is_told_to_who_follows_it(folder):
    write_atomically(folder.study.path / "study.json", b"damaged")
    with pytest.raises(StorageError) as refused:
        run({"server": str(folder.path)})
    told = folder.progress.read()[0][-1]
    assert told == Stopped(what=refused.value.what, why=refused.value.why, fix=refused.value.fix)
    assert not folder.is_running


class Coming(LocalGrid):
    """A grid to which sites connect one by one, another each time that somebody asks."""

    def __init__(self, names):
        nothing: dict[str, Any] = dict.fromkeys(names)
        super().__init__(nothing, lambda site, message: False)
        self._asked = count()

    def get_nodes(self):
        return [SimpleNamespace(name=name, node_id=node) for name, node in self.nodes.items()][: next(self._asked)]


def a_study_run(folder):
    ledger = LedgerWriter(identity=Identity.generate(), store=lambda line: None)
    nothing: dict[str, Any]
    nothing = dict.fromkeys(("folder", "model", "base", "evaluation", "evaluation_source", "observe"))
    return StudyRun(manifest=folder.study.manifest(), ledger=ledger, **nothing)


def in_training(study):
    """The same, once all its sites have signed it."""
    verified, manifest = study.ledger.verified, study.manifest
    verified.manifests, verified._secagg = [manifest], manifest.secagg_parameters
    verified.countersigned = dict.fromkeys(manifest.site_keys, "")
    return study


def test_no_message_is_sent_before_as_many_sites_are_connected_as_an_attempt_needs(folder):
    study = in_training(a_study_run(folder))
    names = list(study.manifest.site_keys)
    assert list(enough_nodes(folder, study)(Coming(names))) == names[: study.manifest.threshold]
    waited_for = [event.sites for event in folder.progress.read()[0]]
    assert waited_for == [tuple(names[there:]) for there in range(study.manifest.threshold)]


def test_whoever_is_there_is_asked_to_sign_the_end(folder):
    study = in_training(a_study_run(folder))
    study.ledger.verified.closed = StudyClosed(charges={}, files={})
    assert enough_nodes(folder, study)(Coming(study.manifest.site_keys)) == {}


def test_whoever_is_there_is_asked_to_sign_the_study(folder):
    study = a_study_run(folder)
    assert enough_nodes(folder, study)(Coming(study.manifest.site_keys)) == {}
