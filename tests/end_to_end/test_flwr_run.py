"""``flwr run``, as who lives in Flower types it: a simulation on this machine."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
from support.network.loopback import flwr, free_ports, has_ended, parts_of, until

from grandrounds.deploy.flower.archive import app_folder
from grandrounds.deploy.verify.claims import verify

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Flower simulates with Ray: pip install 'grandrounds[flower-simulation]'",
)


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
