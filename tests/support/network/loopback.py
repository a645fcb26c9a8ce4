"""A real federation on loopback: the server's processes, and a unit for each site. Its run sends what a test says."""

import hashlib
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from grandrounds.client.node.supernode import Supernode
from grandrounds.common.system.files import make_folder
from grandrounds.common.system.processes import environment
from grandrounds.deploy.bench.loopback import free_ports
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, make_certificates
from grandrounds.deploy.enrolment.node_keys import make_node_key, make_secret
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.deploy.server_ops.flwr import FlowerControl
from grandrounds.server.run.server_folder import ServerFolder

APP = Path(__file__).parent / "loopback_app"
PATIENCE_S = 120.0
POLL_S = 0.05
ASK_AGAIN_S = 0.5  # each time, Flower computes for some hundredths of a second


class Loopback:
    """The server, from ``with`` to its end, and the sites that were added. Everything is below ``root``.

    The gate's certificate is one for ``host`` and for loopback, where it is reached.
    """

    def __init__(self, root, *, host="localhost"):
        self.root = root
        self._host = host
        self.server = ServerFolder(root / "server")
        self.flower = FlowerControl(self.server)
        self._stopped = threading.Event()
        self._threads = []

    def __enter__(self):
        server, (gate, superlink) = self.server, free_ports(2)
        make_folder(server.flower)
        make_certificates(server.certificates, self._host)
        make_secret(server.secret)
        server.write_settings(f'port = {gate}\nsuperlink_port = {superlink}\nevaluation = "none"\n')
        self.flower.configure()
        self.address = f"localhost:{gate}"
        said: list[str] = []
        self._run(lambda: server_operator.start(server, stopped=self._stopped.is_set, say=said.append))
        # Not before: until then it has nodes let in no more that it knows nothing of, and a test enrolls such.
        until(lambda: any("is open for" in line for line in said), "the server is up")
        return self

    def __exit__(self, *exception):
        self._stopped.set()
        for thread in reversed(self._threads):
            thread.join()

    def site(self, name, worker, *, app_sha256, address=None):
        """A site, neither enrolled nor started; it finds the gate at another ``address`` than this machine does."""
        certificates = self.server.certificates / CA_CERTIFICATE
        address = address or self.address
        return Site(self.root / name, worker, address=address, certificates=certificates, app_sha256=app_sha256)

    def enroll(self, site):
        """Let the site's node in; its id."""
        return self.flower.register(site.name, site.supernode.node_key.with_suffix(".pub").read_text())

    def start(self, site):
        """Run the site's unit from here on."""
        self._run(lambda: site.supernode.run(self._stopped.is_set))

    def run(self, app):
        """A run of the app in the folder ``app``, once it waits for what to send."""
        place = self.root / f"{secrets.token_hex(4)}.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(place))
            listening.listen()
            listening.settimeout(PATIENCE_S)
            flwr("run", app, "study", "--run-config", f'test="{place}"', FLWR_HOME=str(self.server.flower_home))
            peer, _ = listening.accept()
        return Run(Connection(peer.detach()))

    def _run(self, target):
        self._threads.append(threading.Thread(target=target))
        self._threads[-1].start()


class Run:
    """What sends a test's messages, until the end of the ``with``."""

    def __init__(self, connection):
        self._connection = connection

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._connection.send(None)
        self._connection.close()

    def ask(self, site, message):
        """The site's answer; an error code of Flower's, or None, where its node was away."""
        self._connection.send({site.name: message})
        assert self._connection.poll(PATIENCE_S), "the run gives no answer"
        return self._connection.recv()[site.name]

    def ask_until_there(self, site, message):
        """The site's answer, once its node is there."""
        answers = []

        def answered():
            answers.append(self.ask(site, message))
            return isinstance(answers[-1], bytes | dict)

        until(answered, f"{site.name} answers", poll_s=ASK_AGAIN_S)
        return answers[-1]


class Site:
    """A site, whose unit runs in this process."""

    def __init__(self, folder, worker, *, address, certificates, app_sha256):
        """Its keys are made in ``folder``; it asks the worker at the socket ``worker``."""
        self.name = folder.name
        folder.mkdir()
        make_node_key(folder / "node.key", folder / "node.pub")
        make_secret(folder / "exec.secret")
        self.supernode = Supernode(
            address=address,
            certificates=certificates,
            node_key=folder / "node.key",
            secret=folder / "exec.secret",
            socket=worker,
            app_sha256=app_sha256,
            runtime_port=free_ports(1)[0],
            folder=folder,
            timeout_s=10 * PATIENCE_S,  # the relay never gives up within a test
            largest_bytes=1 << 26,
        )

    def process(self, program):
        """The id of its ``flower-supernode`` or ``client.relay``, once there is one."""

        def found():
            children = [
                child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()
            ]
            return [int(child) for child in children if {program, str(self.supernode.secret)} <= parts_of(child)]

        return until(found, f"{program} is up")[0]

    def log(self, program):
        """What its ``supernode`` or ``relay`` has logged."""
        path = self.supernode.folder / f"{program}.log"
        return path.read_text() if path.exists() else ""


def flwr(*arguments, **variables):
    """What Flower's command prints."""
    command, env = [Path(sys.executable).with_name("flwr"), *arguments], environment(**variables)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def an_app(folder, version="1.0.0"):
    """The folder of an app of this version, and the hash of its archive."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("1.0.0", version))
    return folder, hashlib.sha256(build_fab_from_disk(folder)).hexdigest()


def parts_of(process):
    """The parts of a process's command, programs by their names."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return set()
    return {*command, *(Path(part).name for part in command)}


def until(holds, what, *, poll_s=POLL_S):
    """What ``holds`` returns, once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(poll_s)
    return value


def has_ended(process):
    """Whether there is no such process, or only what is left of it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it goes while its file is read
        return True
