"""The way from a site to its server, tried step by step before the study needs it."""

import os
import shutil
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Final

import httpx

from ...client.node.folder import NodeFolder, NodeSettings
from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...common.durations import duration
from ...common.errors import StorageError, StudyError, reason
from ...common.model.devices import described
from ...common.system.files import write_atomically
from ...common.system.ports import cannot_listen, holder
from ...common.system.processes import environment
from ..enrolment.node_keys import node_proof
from .connection_faults import clock_fault, connection_fault, gate_fault, proxy_fault, unusable_proxy
from .owner import done_as
from .users import SiteUsers

_CALL: Final = "/v1/fleet/activate-node"
_PATIENCE_S: Final = 30.0
# What Flower bears of a node's clock against the server's is 5 and 305 s; an HTTP date is up to two seconds old.
_LARGEST_AHEAD: Final = timedelta(seconds=3)
_LARGEST_BEHIND: Final = timedelta(seconds=303)
_WARN_OF_CLOCK: Final = timedelta(seconds=2)
_LEAST_FREE_BYTES: Final = 1 << 30
_NOT_ENROLLED: Final = 412  # Flower's answers to a node that would be activated: nobody enrolled its key,
_NO_INTERVAL: Final = b"Invalid heartbeat interval"  # and it is enrolled, but asks for an interval that none may have


def check_connection(folder: SiteFolder, study: JoinedStudy) -> Iterator[str]:
    """What a node meets on its way to the server and needs of its machine, a line for each step that passed.

    A node that runs is not disturbed. Raises StudyError at the first step that fails, which says what usually causes
    it, and StorageError.
    """
    node, settings = study.node, study.node.settings()
    yield f"this is grandrounds {settings.package_version}, as the study pinned it; its server is {settings.address}"
    yield from try_way(node, settings)
    yield from _machine(folder, settings)


def try_way(node: NodeFolder, settings: NodeSettings) -> Iterator[str]:
    """What a node meets on its way to the server, a line for each step that passed. Raises as ``check_connection``."""
    host, _, port = settings.address.rpartition(":")
    proxy = _proxy(settings.address)
    if proxy is None:
        yield "no proxy is set for it"
        yield f"{host} is {_addresses(host.strip('[]'), port)}"
    else:
        yield f"the proxy for it is {_shown(proxy)}, which looks up {host}"
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        yield "SSL_CERT_FILE and SSL_CERT_DIR change nothing: a node trusts the study's ca.crt alone"
    response, certificate, ahead = _answer(node, settings.address, proxy)
    yield f"the server's certificate is of the authority in {node.certificates.name}, and holds until {certificate}"
    if response.status_code == httpx.codes.UNAUTHORIZED and not -_LARGEST_BEHIND < ahead < _LARGEST_AHEAD:
        raise clock_fault(ahead)
    close = ": set it by NTP before it is too far, which is at 5 s" if ahead > _WARN_OF_CLOCK else ""
    yield f"this machine's clock {_compared(ahead)} the server's{close}"
    if response.status_code == httpx.codes.BAD_REQUEST and _NO_INTERVAL in response.content:
        yield "the server answers, and has enrolled this site's node"
        return
    if response.status_code == _NOT_ENROLLED:
        raise StudyError(
            "the server answers, and does not know this site's node",
            why="it takes messages of enrolled nodes only",
            fix="have the server's operator enroll the site.json that lies here now: grandrounds server enroll",
        )
    raise gate_fault(response.status_code)


def _answer(node: NodeFolder, address: str, proxy: str | None) -> tuple[httpx.Response, str, timedelta]:
    """The answer to a call that changes nothing; until when the certificate holds; how far the clock is ahead."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest

    began = datetime.now(UTC)
    public, headers = node_proof(node.key, now=began)
    body = ActivateNodeRequest(public_key=public).SerializeToString()  # without an interval, which comes first
    headers |= {"content-type": "application/protobuf"}
    try:
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.load_verify_locations(cadata=node.certificates.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{node.certificates} cannot be read as a certificate ({reason(error)})",
            why="a node knows the server by the authority in it",
            fix="join the study again, with the study.zip that the server's operator sent",
        ) from error
    try:
        client = httpx.Client(proxy=proxy, trust_env=False, verify=trusted, timeout=_PATIENCE_S)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise unusable_proxy() from error
    url = f"https://{address}{_CALL}"
    try:
        with client, client.stream("POST", url, content=body, headers=headers) as response:
            ended = datetime.now(UTC)
            certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            response.read()
    except httpx.ProxyError as error:
        raise proxy_fault(_shown(proxy), str(error)) from error
    except httpx.HTTPError as error:
        raise connection_fault(error, address=address, proxy=proxy, shown=_shown(proxy)) from error
    return response, str(certificate["notAfter"]), _ahead(response, began, ended)


def _ahead(response: httpx.Response, began: datetime, ended: datetime) -> timedelta:
    """How far this clock is before the one that dated the response; none where it bears no date."""
    try:
        server = parsedate_to_datetime(response.headers.get_list("date")[0])
        return began + (ended - began) / 2 - server - timedelta(seconds=0.5)
    except (IndexError, ValueError, TypeError):
        return timedelta()


def _compared(ahead: timedelta) -> str:
    seconds = round(ahead.total_seconds())
    if seconds == 0:
        return "agrees with"
    return f"is {duration(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'}"


def _proxy(address: str) -> str | None:
    """The proxy that a node of this environment uses for the address, if any."""
    host = address.rpartition(":")[0]
    if urllib.request.proxy_bypass(address) or host in environment()["no_proxy"].split(","):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _shown(proxy: str | None) -> str:
    """A proxy without its password."""
    return (proxy or "").rpartition("@")[2].rpartition("://")[2].rstrip("/")


def _addresses(host: str, port: str) -> str:
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise StudyError(
            f"the name {host} cannot be looked up ({error.strerror})",
            why="the study's server is reached by it",
            fix="ask the network's administrators for the name's address, or for the proxy that looks it up, and set "
            "https_proxy where `grandrounds client start` runs",
        ) from error
    return ", ".join(sorted({str(place[4][0]) for place in found}))


def _machine(folder: SiteFolder, settings: NodeSettings) -> Iterator[str]:
    yield f"port {settings.runtime_port} of loopback is {_port(settings.runtime_port)}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"the worker has {len(os.sched_getaffinity(0))} cores and {memory / 2**30:.0f} GiB of memory"
    yield f"the model computes on {described(folder.settings().devices)}"
    users = SiteUsers.of(folder.settings())
    yield done_as(users.worker if users and os.geteuid() == 0 else None, lambda: _disk(folder.state))


def _port(port: int) -> str:
    if cannot_listen(("127.0.0.1", port)) is None:
        return "free for the node"
    otherwise = "stop that, or choose another runtime_port in site.toml, and join again"
    return f"not free: {holder(port)}; unless that is this site's own SuperNode, {otherwise}"


def _disk(state: Path) -> str:
    started = monotonic()
    probe = state / "connection-check"
    write_atomically(probe, bytes(4096), mode=0o600)
    probe.unlink()
    took, free = monotonic() - started, shutil.disk_usage(state).free
    if free < _LEAST_FREE_BYTES:
        raise StorageError(
            f"{state} has {free / 2**30:.1f} GiB free",
            why="what cannot be written is not begun, and the site would be missing",
            fix=f"free {_LEAST_FREE_BYTES / 2**30:.0f} GiB or more there",
        )
    return f"{state} has {free / 2**30:.0f} GiB free, and a write there is on the disk within {1000 * took:.0f} ms"
