"""The door: whoever comes and says nothing, or too slowly, keeps nobody else out."""

import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.network.loopback import PATIENCE_S, free_ports, until

from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY, make_certificates
from grandrounds.deploy.server_ops.door import Door

SOON_S, NEVER_S = 0.2, 10 * PATIENCE_S
CALL = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, "localhost")
    return folder


@contextmanager
def opened(certificates, **limits):
    """The port of a door that answers ``GET /``."""

    async def answer(request):
        return PlainTextResponse("come in")

    (port,) = free_ports(1)
    door = Door(
        Starlette(routes=[Route("/", answer)]),
        address=("127.0.0.1", port),
        certificate=certificates / CERTIFICATE,
        key=certificates / CERTIFICATE_KEY,
        **limits,
    )
    thread = threading.Thread(target=door.run)
    thread.start()
    until(lambda: door.started, "it listens")
    try:
        yield port
    finally:
        door.should_exit = True
        thread.join()


def caller(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def shaken(port, certificates):
    """A connection whose handshake is done."""
    trusted = ssl.create_default_context(cafile=str(certificates / CA_CERTIFICATE))
    return trusted.wrap_socket(caller(port), server_hostname="localhost")


def is_let_in(port, certificates):
    try:
        with shaken(port, certificates) as connection:
            connection.sendall(CALL)
            return b"come in" in connection.recv(4096) + connection.recv(4096)
    except OSError:
        return False


def is_ended(connection):
    """Whether the other side ended it, which is waited for."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_who_makes_no_handshake_is_let_go(certificates):
    with opened(certificates, handshake_s=SOON_S, head_s=NEVER_S) as port, caller(port) as silent:
        assert is_ended(silent)


@pytest.mark.parametrize("said", [b"GET / HT", CALL[:-2]])
@pytest.mark.parametrize("before", [b"", CALL])
def test_who_does_not_end_a_call_s_head_is_let_go(certificates, before, said):
    with opened(certificates, handshake_s=NEVER_S, head_s=SOON_S) as port, shaken(port, certificates) as slow:
        slow.sendall(before)
        until(lambda: not before or slow.recv(4096).endswith(b"come in"), "that is answered")
        slow.sendall(said)
        assert is_ended(slow)


def test_a_head_without_end_is_refused(certificates):
    with opened(certificates, head_s=NEVER_S) as port, shaken(port, certificates) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                endless.sendall(b"a: " + b"b" * 4096 + b"\r\n")
        assert is_let_in(port, certificates)


def test_half_open_connections_of_one_address_take_up_some_of_the_door_and_no_more(certificates):
    with opened(certificates, handshake_s=NEVER_S, most_of_one=3) as port, ExitStack() as held:
        silent = [held.enter_context(caller(port)) for _ in range(3)]
        with caller(port) as further:
            assert is_ended(further)
        assert not is_let_in(port, certificates)
        silent[0].close()
        until(lambda: is_let_in(port, certificates), "there is room again")


def test_a_thousand_half_open_connections_shut_the_door_for_nobody_once_their_time_is_over(certificates):
    with opened(certificates, handshake_s=SOON_S) as port, ExitStack() as held:
        for _ in range(1010):
            held.enter_context(caller(port))
        until(lambda: is_let_in(port, certificates), "others are let in")
