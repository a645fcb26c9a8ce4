"""Flower's control interface, called as its own command line does on the machine of the SuperLink.

In this process: a process of ``flwr`` takes a second to load for each call.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ...common.crypto.identity import sha256
from ...common.errors import StudyError
from ...common.system.files import write_atomically
from ...common.system.processes import without_proxy
from ...server.run.server_folder import ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE
from ..enrolment.node_keys import node_pem
from ..flower.archive import app_archive

if TYPE_CHECKING:
    import httpx
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.control import ControlHttpClient

_CONNECTION: Final = "study"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that Flower knows: ``status`` is registered, online or offline; ``since`` when it became so.

    One that is registered has not been online since its key was let in.
    """

    node_id: int
    status: str
    since: str


class FlowerControl:
    """A server's SuperLink, for whoever may reach it on loopback."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder

    def configure(self) -> None:
        """Write for ``flwr`` itself where the SuperLink is, and who vouches for it. Raises StudyError, StorageError."""
        authority = str((self._folder.inside / CA_CERTIFICATE).absolute())
        text = f"""[superlink]
default = "{_CONNECTION}"

[superlink.{_CONNECTION}]
address = {json.dumps(self._folder.settings().superlink)}
root-certificates = {json.dumps(authority, ensure_ascii=False)}
"""
        write_atomically(self._folder.flower_home / "config.toml", text.encode())

    def register(self, name: str, node_key: str) -> int | None:
        """Enroll a node by its public key: its id, or None where that key is enrolled already. Raises StudyError."""
        import httpx
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        with self._control() as control:
            try:
                node_id: int = control.RegisterNode(
                    RegisterNodeRequest(public_key=node_pem(node_key), name=name)
                ).node_id
            except httpx.HTTPStatusError as error:
                if _said(error)[0] == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                    return None
                raise
        return node_id

    def unregister(self, node_id: int) -> None:
        """Let a node in no more, nor any other under its key. Raises StudyError."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> Sequence[Node]:
        """The nodes that are enrolled. Raises StudyError."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._control() as control:
            listed = control.ListNodes(ListNodesRequest()).nodes_info
        return [_node(info) for info in listed if info.status != "unregistered"]

    def run(self) -> int:
        """Start a run of the app on the server's folder; its id. Raises StudyError."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        archive = app_archive()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(sha256(archive), archive, {})),
            override_config=user_config_to_proto({"server": str(self._folder.path.absolute())}),
        )
        with self._control() as control:
            run_id: int = control.StartRun(request).run_id
        return run_id

    def run_status(self, run_id: int) -> str:
        """Where a run stands: pending, starting, running or finished. Raises StudyError."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._control() as control:
            runs = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        return str(runs[run_id].status.status) if run_id in runs else ""

    @contextmanager
    def _control(self) -> Iterator["ControlHttpClient"]:
        """Flower's client; whatever goes wrong in its calls is a StudyError."""
        import httpx
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        os.environ.update(without_proxy())
        try:
            with closing(
                ControlHttpClient.from_server_address(
                    self._folder.settings().superlink,
                    insecure=False,
                    root_certificates=(self._folder.inside / CA_CERTIFICATE).read_bytes(),
                    interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
                )
            ) as control:
                yield control
        except httpx.HTTPStatusError as error:
            raise _failed(f"refuses: {_said(error)[1]}") from error
        except (httpx.HTTPError, OSError) as error:
            raise _failed(f"cannot be reached: {error}") from error


def _node(info: "NodeInfo") -> Node:
    since = {"online": info.last_activated_at, "offline": info.last_deactivated_at}.get(info.status)
    at = datetime.fromisoformat(since or info.registered_at).astimezone(UTC)
    return Node(node_id=info.node_id, status=info.status, since=f"{at:%Y-%m-%d %H:%M:%SZ}")


def _said(error: "httpx.HTTPStatusError") -> tuple[int | None, str]:
    """By which code Flower refused, if by one, and in which words."""
    from flwr.supercore.error import FlowerError

    said = FlowerError.from_json(error.response.text)
    return (None, str(error)) if said is None else (said.code, said.message)


def _failed(said: str) -> StudyError:
    return StudyError(
        f"Flower's SuperLink {' '.join(said.split())[:400]}",
        why="sites reach the study through it",
        fix="start it with `grandrounds server start`; flower/superlink.log in its folder says what it met",
    )
