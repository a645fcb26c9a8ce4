"""A node that says what a test wants in Flower's own words, where a SuperNode would say what it should."""

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from grandrounds.common.protocol.messages import FIELD, RECORD


class RawNode:
    """The enrolled node of a ``loopback.Site``, in place of its SuperNode, from when it is made."""

    def __init__(self, site, node_id):
        self.name = site.name
        self.node_id = node_id
        key = serialization.load_ssh_private_key(site.supernode.node_key.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        authentication = NodeAuthHttpInterceptor(key, key.public_key())
        authority = str(site.supernode.certificates)
        self._client = FleetHttpClient.from_server_address(site.supernode.address, False, authority, [authentication])
        public_key = public_key_to_bytes(key.public_key())
        self._client.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=1800))

    def pull(self, *, of=None):
        """The message that waits for this node, if one does; or, under this one's key, for the node ``of``."""
        node = Node(node_id=(of or self).node_id)
        waiting = self._client.PullMessages(PullMessagesRequest(node=node)).messages_list
        return message_from_proto(waiting[0]) if waiting else None

    def push(self, answer, message, *, caller=None, author=None):
        """Answer a message: under this node's key, as the node ``caller`` on behalf of the node ``author``."""
        caller, author = caller or self, author or self
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = message.metadata.run_id, author.node_id, 1
        reply = Message(RecordDict({RECORD: ConfigRecord({FIELD: answer})}), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = author.node_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = PushMessagesRequest(
            node=Node(node_id=caller.node_id),
            messages_list=[message_to_proto(reply)],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[0.0],
        )
        given = self._client.PushMessages(request)
        push = make_push_object_fn_protobuf(
            self._client.PushObject, request.node, message.metadata.run_id, given.session_id
        )
        push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(given.objects_to_push))
        return set(given.objects_to_push)


def refused(call, *arguments, **named):
    """The HTTP status with which a call is refused; None where it is not."""
    try:
        call(*arguments, **named)
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return None
