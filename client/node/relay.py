"""The executor of a site's SuperNode: carries each message's bytes to the worker's socket, and its answer back.

It takes the place of Flower's own executor, which would unpack the server's archive and run what is in it. Here nothing
of an archive is unpacked, imported or run: its bytes are hashed, and unless they have the hash that the site pinned,
nothing is asked of the worker. The SuperNode itself unpacks the pyproject.toml in it before, which is why services and
containers bound a node's memory. Of Flower's inner modules a site uses those that this file does, and the types of its
protocol's messages (``deploy/site_ops/connection``).

Each task is served in a forked child: one that belongs to a run that died may wait for ever. Every task is answered,
if only by silence (empty bytes), since a SuperNode waits for each answer without end.
"""

import hashlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from ...common.errors import EnvelopeError
from ...common.protocol.messages import FIELD, RECORD
from ...common.system.privileges import keep_memory_private
from ...common.system.processes import die_with
from ..worker_socket import carry_to
from .parcels import Parcels

_CLAIM_S: Final = 0.2  # a SuperNode itself asks for messages every 3 s
_POLL_S: Final = 0.05
_HEARTBEAT_S: Final = 20.0
_PULL_S: Final = 120.0  # for a message's parts to arrive; those of a dead run never do
_CLAIM: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_SILENCE: Final[dict[str, Any]] = {FIELD: b""}
_log = logging.getLogger(__name__)


class Relay:
    """Serves the tasks of the SuperNode at ``runtime`` (host:port) with a worker."""

    def __init__(self, *, runtime: str, secret: bytes, app_sha256: str, parcels: Parcels) -> None:
        """``secret`` proves to the SuperNode that this is its executor; ``parcels`` ask the worker."""
        self._runtime = runtime
        self._app_sha256 = app_sha256
        self._parcels = parcels
        self._told = ""
        self._executor = self._client(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_CLAIM))

    def run(self) -> None:
        """Serve until a task ends without an answer: the SuperNode then has to be started anew, and this with it."""
        children: set[int] = set()
        relay = os.getpid()
        while True:
            token = self._acquired()
            if token:
                child = os.fork()
                if child == 0:
                    die_with(relay)
                    os._exit(self._served(token))
                children.add(child)
            ended = {pid: status for child in children for pid, status in [os.waitpid(child, os.WNOHANG)] if pid}
            children -= ended.keys()
            if any(ended.values()):
                _log.error("a task ended without an answer")
                sys.exit(1)
            if not token:
                time.sleep(_CLAIM_S)

    def _acquired(self) -> str:
        """The token of a task, or nothing."""
        try:
            request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
            token = str(self._executor.AcquireTask(request).token)
        except httpx.TransportError:
            self._tell("the SuperNode is not up yet")
            time.sleep(1)
            return ""
        self._tell("the SuperNode is up")
        return token

    def _tell(self, state: str) -> None:
        if state != self._told:
            self._told = state
            _log.info(state)

    def _served(self, token: str) -> int:
        try:
            self._serve(token)
        except BaseException as error:  # in a child that must end here, whatever happened
            _log.error("a task failed: %s", type(error).__name__)
            return 1
        return 0

    def _serve(self, token: str) -> None:
        runtime, done = self._client(RuntimeTokenHttpInterceptor(token)), threading.Event()

        def beat() -> None:
            while not done.wait(_HEARTBEAT_S):
                try:
                    runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest())
                except httpx.HTTPError as error:  # the next one is still in time
                    _log.warning("no heartbeat: %s", type(error).__name__)

        threading.Thread(target=beat, daemon=True).start()
        given = runtime.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        context = context_from_proto(given.context)
        message = _pulled(runtime, context)
        answer = self._answer(given, message)
        push_message(runtime, Message(RecordDict({RECORD: ConfigRecord(answer)}), reply_to=message), context)
        push_task_output(runtime, context, "completed", "")
        done.set()

    def _answer(self, given: PullTaskInputResponse, message: Message) -> dict[str, Any]:
        """The reply's fields; silence for another archive than the pinned one, and where no worker answers."""
        found = hashlib.sha256(given.fab.content).hexdigest()
        if found != self._app_sha256:
            _log.error("refused: an app archive with the hash %s, and not %s", found, self._app_sha256)
            return _SILENCE
        content = message.content if message.has_content() else RecordDict()
        try:
            return self._parcels.answered(content.config_records.get(RECORD, ConfigRecord()))
        except (EnvelopeError, OSError) as error:
            _log.warning("no answer: %s", error)
            return _SILENCE

    def _client(self, interceptor: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor) -> RuntimeHttpClient:
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        return RuntimeHttpClient.from_server_address(self._runtime, True, None, [version, interceptor])


def _pulled(runtime: RuntimeHttpClient, context: Context) -> Message:
    """The task's message, once all its parts are there."""
    deadline = time.monotonic() + _PULL_S
    while not (pulled := runtime.PullMessages(PullAppMessagesRequest())).messages_list:
        if time.monotonic() > deadline:
            raise TimeoutError("its message never came")
        time.sleep(_POLL_S)  # the SuperNode makes the task a moment before it stores the message
    tree, node = pulled.message_object_trees[0], Node(node_id=context.node_id)
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(runtime.PullObject, node, context.run_id),
        make_confirm_message_received_fn_protobuf(runtime.ConfirmMessageReceived, node, context.run_id),
        return_type=Message,
        max_time=_PULL_S,
        max_tries_per_object=None,
        initial_backoff=_POLL_S,
        backoff_cap=0.5,
    )
    # As Flower's own executor does: a message's id is that of its object.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def main(
    runtime: str, secret: str, socket: str, app_sha256: str, timeout_s: str, pieces: str, largest_bytes: str
) -> None:
    """``python -m grandrounds.client.node.relay RUNTIME SECRET-FILE SOCKET APP-SHA256 TIMEOUT-S PIECES LARGEST-BYTES``.

    An answer is waited for TIMEOUT-S; messages in pieces are kept in the folder PIECES.
    """
    keep_memory_private()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    Relay(
        runtime=runtime,
        secret=Path(secret).read_bytes(),
        app_sha256=app_sha256,
        parcels=Parcels(
            folder=Path(pieces),
            largest_bytes=int(largest_bytes),
            ask=carry_to(Path(socket), timeout_s=float(timeout_s)),
        ),
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
