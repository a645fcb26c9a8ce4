"""``flwr run``, as who lives in Flower types it: a simulation on this machine, and a study of a deployment."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.network.loopback import Loopback, free_ports, has_ended, parts_of, until
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.system.processes import environment
from grandrounds.deploy.flower.archive import app_folder
from grandrounds.deploy.verify.claims import verify

FLWR = Path(sys.executable).with_name("flwr")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Flower simulates with Ray: pip install 'grandrounds[flower-simulation]'",
)


def flwr(*arguments, **variables):
    """What the command prints."""
    env = environment(**variables)
    done = subprocess.run([FLWR, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def local(tmp_path):
    """Variables for Flower, which starts a SuperLink of its own for a simulation and leaves it running."""
    home, (port, control) = tmp_path / "home", free_ports(2)
    yield {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }
    log = str(home / "local-superlink" / "superlink.log")
    for process in (path.name for path in Path("/proc").glob("[0-9]*") if log in parts_of(path.name)):
        os.kill(int(process), signal.SIGTERM)
        until(lambda process=process: has_ended(process), "Flower's SuperLink ends")


@needs_ray
def test_a_simulation_on_this_machine_leaves_a_study_that_verifies(local, tmp_path):
    output = tmp_path / "results"
    nodes, config = "num-supernodes=3", f"output={json.dumps(str(output))}"
    log = flwr("run", app_folder(), "--federation-config", nodes, "--run-config", config, "--stream", **local)
    assert "round 2/2" in log
    assert verify(output).holds


def test_a_second_run_of_a_study_ends_at_once_and_says_why_in_its_log(tmp_path):
    study = small_study()
    keys = {site.name: Identity.generate() for site in study.sites}
    with Loopback(tmp_path) as deployment, deployment.server.running():  # as the first run does
        server, home = deployment.server, {"FLWR_HOME": str(deployment.server.flower_home)}
        server.study.save_manifest(small_manifest(study, keys, Identity.generate(), dimension=7))
        config = f"server={json.dumps(str(server.path))}"
        log = flwr("run", app_folder(), "study", "--run-config", config, "--stream", **home)
        assert "the study runs already. Why it matters:" in log
        (run,) = json.loads(flwr("list", "study", "--format", "json", **home))["runs"]
        assert run["status"] == "finished:failed"
