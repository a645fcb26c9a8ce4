"""Flower's own simulation, but for Ray: its nodes are threads of this process."""

import secrets
import threading

from flwr.app import Context, RecordDict
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import _register_node_info_stores, _register_nodes, run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from grandrounds.deploy.flower.archive import app_sha256
from grandrounds.deploy.flower.client_app import app as client_app
from grandrounds.deploy.flower.server_app import app as server_app

TASK_ID = 1


class InThreads(Backend):
    """Calls the ClientApp in the thread that has the message, whose node any of them may be."""

    num_workers = 2

    def __init__(self):
        super().__init__({})

    def build(self, app_fn):
        self._app = app_fn()

    def is_worker_idle(self):
        return True

    def terminate(self):
        pass

    def process_message(self, message, context):
        return self._app(message, context), context


def run_in_threads(config, *, nodes, archive=None):
    """Run the Flower app with this configuration, as ``flwr run`` does; it raises what its ServerApp does."""
    run_id = secrets.randbits(63)
    run = Run.create_empty(run_id)
    run.primary_task_id, run.federation_id, run.fab_hash = TASK_ID, NOOP_FEDERATION_ID, archive or app_sha256()
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = TASK_ID, run_id, 1
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = states.state()
    assert isinstance(state, InMemoryLinkState)
    state.run_ids[run_id] = RunRecord(run=run)
    state.task_store[TASK_ID] = Task(task_id=TASK_ID, run_id=run_id)
    grid = InMemoryGrid(states)
    grid.set_run(run)
    mapping, stopped = _register_nodes(nodes, states), threading.Event()
    stores = _register_node_info_stores(mapping, run)
    arguments = (lambda: client_app, InThreads, mapping, states, stores, stopped, VceMetrics())
    carrying = threading.Thread(target=run_api, args=arguments)
    carrying.start()
    try:
        server_app(grid, Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    finally:
        stopped.set()
        carrying.join()
