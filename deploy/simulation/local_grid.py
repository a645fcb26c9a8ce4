"""A Flower Grid in one process: the simulation's network."""

from collections.abc import Callable, Iterable, Mapping
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
RUN_ID = 1
App = Callable[[Message, Context], Message]  # a ClientApp, or what stands for one


class LocalGrid(Grid):
    """Calls ClientApps directly, one after the other, when replies are pulled.

    ``is_lost(site, message)`` says which messages meet a node that is gone: their reply is the error that Flower gives
    for one. Real Messages go in and out; only what carries them differs from a deployment.
    """

    def __init__(self, apps: Mapping[str, App], is_lost: Callable[[str, Message], bool]) -> None:
        self._apps = apps
        self._sites = dict(enumerate(apps, start=SERVER_NODE + 1))
        self._contexts = {site: local_context(node_id, site) for node_id, site in self._sites.items()}
        self._is_lost = is_lost
        self._pending: dict[str, Message] = {}
        self._serials = count(1)
        self._run = Run.create_empty(RUN_ID)
        # Flower refuses to build a Message outside a task: this process is the task.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1

    @property
    def nodes(self) -> dict[str, int]:
        """The node of each site."""
        return {site: node_id for node_id, site in self._sites.items()}

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Name the run."""
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; whether one is gone shows when a message to it gets no answer."""
        return list(self._sites)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; their nodes see them when replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._serials)}"
            # Flower's SuperLink gives a message its identifier; here the grid does.
            message.metadata.__dict__["_message_id"] = identifier
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies, each produced as it is asked for."""
        for identifier in message_ids:
            if identifier in self._pending:
                yield self._deliver(self._pending.pop(identifier))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull; nothing here takes longer than its node, so there is no timeout to wait for."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        site = self._sites[message.metadata.dst_node_id]
        if self._is_lost(site, message):
            return Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)
        return self._apps[site](message, self._contexts[site])


def local_context(node_id: int, site: str) -> Context:
    """The context that Flower gives an app on the node of ``site``."""
    return Context(run_id=RUN_ID, node_id=node_id, node_config={"site": site}, state=RecordDict(), run_config={})
