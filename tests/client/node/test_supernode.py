"""A site's unit, of real processes: what ends one of them ends both, and both come back."""

import logging
import os
import signal
import socket
import threading

import pytest
from flwr.supercore.logger import ConsoleHandler
from support.network.loopback import Site, free_ports, has_ended, until

from grandrounds.client.node.supernode import _Errors
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, make_certificates

SUPERNODE, RELAY = "flower-supernode", "grandrounds.client.node.relay"


class Alone:
    """A site whose server is not there, and its unit, which runs until the end of the ``with``."""

    def __init__(self, root):
        make_certificates(root / "tls", "localhost")
        address, certificates = f"localhost:{free_ports(1)[0]}", root / "tls" / CA_CERTIFICATE
        self.site = Site(
            root / "site-1", root / "none", address=address, certificates=certificates, app_sha256="00" * 32
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: self.site.supernode.run(self._stopped.is_set))

    def __enter__(self):
        self._thread.start()
        return self.site

    def __exit__(self, *exception):
        self._stopped.set()
        self._thread.join()


def kill_the_supernode(site):
    os.kill(site.process(SUPERNODE), signal.SIGKILL)


def kill_the_relay(site):
    os.kill(site.process(RELAY), signal.SIGKILL)


def let_the_supernode_log_an_error(site):
    with (site.supernode.folder / "supernode.log").open("a") as log:
        log.write(as_flower_logs(ConsoleHandler(), "its main loop ended"))


def as_flower_logs(handler, said):
    return handler.format(logging.LogRecord("flwr", logging.ERROR, "", 0, said, None, None)) + "\n"


NOT_FATAL = {
    "what it answered who has not the secret": as_flower_logs(
        ConsoleHandler(), "[/v1/runtime/acquire-task][ApiError:1] SuperExec authentication failed for it."
    ),
    "what it answered two bytes": as_flower_logs(
        ConsoleHandler(), "[/v1/runtime/acquire-task][ApiError:2] Invalid protobuf payload: DecodeError('ERROR')"
    ),
    "its HTTP server": "ERROR:    Exception in ASGI application\n",
    "a trace": "  raise ERROR\n",
    "no error": as_flower_logs(ConsoleHandler(), "[/v1").replace("ERROR", "INFO"),
    "half a line": as_flower_logs(ConsoleHandler(), "its main loop")[:-1],
}


@pytest.mark.parametrize("said", NOT_FATAL)
def test_what_any_program_of_the_machine_can_have_a_supernode_say_ends_nothing(tmp_path, said):
    log = tmp_path / "supernode.log"
    errors = _Errors(log)
    log.write_text(NOT_FATAL[said])
    assert not errors.found()


@pytest.mark.parametrize("colored", [True, False])
def test_an_error_of_a_supernode_s_own_loops_is_found_once_also_after_its_log_was_put_aside(tmp_path, colored):
    log, line = tmp_path / "supernode.log", as_flower_logs(ConsoleHandler(colored=colored), "Failed to receive it")
    log.write_text("INFO : it begins\n" * 9)
    errors = _Errors(log)
    for content in (log.read_text() + line, line):
        log.write_text(content)
        assert errors.found() == "ERROR : Failed to receive it"
        assert not errors.found()


def test_a_port_that_is_another_s_is_said_and_starts_nothing(tmp_path, caplog):
    alone = Alone(tmp_path).site.supernode
    with socket.create_server(("127.0.0.1", alone.runtime_port)):
        alone.run(lambda: bool(caplog.records))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"port {alone.runtime_port} of loopback, for the SuperNode, cannot be had: Address already")
    assert f"process {os.getpid()} (" in said
    assert not (alone.folder / "supernode.log").exists()


@pytest.mark.parametrize("end", [kill_the_supernode, kill_the_relay, let_the_supernode_log_an_error])
def test_what_ends_one_of_both_ends_the_other_and_starts_both_anew(tmp_path, end, caplog):
    with Alone(tmp_path) as site:
        before = {site.process(SUPERNODE), site.process(RELAY)}
        end(site)
        until(lambda: all(map(has_ended, before)), "both have ended")
        after = {site.process(SUPERNODE), site.process(RELAY)}
    assert not before & after
    assert all(map(has_ended, after)), "a unit that was stopped leaves something behind"
    reasons = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert reasons and reasons[0].startswith("the relay ended" if end is kill_the_relay else "the SuperNode ended")
