"""The server operator's road: init, enroll, bundle, start, run, status. Each may be repeated."""

import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

from .. import __version__
from ..common.adapter import vector_bytes
from ..common.audit import Audit
from ..common.errors import StudyError
from ..common.files import make_folder
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..common.model_folder import model_folder_sha256
from ..common.processes import Process, environment
from ..common.study import Study, complete_study, read_study, validated
from .base_model import base_model_folder
from .bundle import Bundle, Flower, SiteCard
from .flower_cli import FlowerCli, app_sha256
from .provision import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY, make_certificates, make_secret
from .server_folder import Enrolled, ServerFolder

_WATCH_S: Final = 0.2
_RESTART_S: Final = 2.0
_START_S: Final = 60.0
_SETTINGS: Final = """# How hospitals reach this server; the SuperLink's port is on loopback alone.
host = {host}
port = {port}
superlink_port = {superlink_port}
# Records that adapters are evaluated on, without noise: public or synthetic, and of no patient.
evaluation = "evaluation.jsonl"
evaluation_words = "records that the server's operator gave"
"""


def init(folder: ServerFolder, *, host: str, port: int, superlink_port: int) -> list[str]:
    """Make keys, certificates and settings, where they are missing; what to do next. Raises StorageError."""
    make_folder(folder.path)
    folder.path.chmod(0o700)
    folder.make_key()
    folder.write_settings(_SETTINGS.format(host=json.dumps(host), port=port, superlink_port=superlink_port))
    if not (folder.certificates / CERTIFICATE).exists():
        make_certificates(folder.certificates, host)
    if not folder.secret.exists():
        make_secret(folder.secret)
    if not folder.study_toml.exists():
        template = resources.files(__package__).joinpath("templates/study.server.toml").read_text("utf-8")
        folder.study_toml.write_text(template, encoding="utf-8")
    FlowerCli(folder).configure()
    return [
        f"the server's key, to be compared with every site: {folder.identity().public_key}",
        f"edit {folder.study_toml}, and put evaluation records where {folder.path / 'server.toml'} says",
        "then: grandrounds server enroll DIR SITE.json, for each site that sent you its site.json",
    ]


def enroll(folder: ServerFolder, card: Path) -> list[str]:
    """Know a site by its card; what to do next. Raises StudyError."""
    site, sites = SiteCard.read(card), folder.sites()
    known = sites.get(site.name)
    if known is not None and (known.public_key, known.node_key) != (site.public_key, site.node_key):
        raise StudyError(
            f"{site.name} is enrolled with another key",
            why="whoever can change a site's key can speak in its name",
            fix="compare the key with the site; a site that changes its key needs a name of its own, or a successor",
        )
    if known is None:
        sites[site.name] = Enrolled(public_key=site.public_key, node_key=site.node_key)
        folder.save_sites(sites)
    return [
        f"{site.name}'s key, to be compared with the site: {site.public_key}",
        f"enrolled: {', '.join(sites)}",
        "then, once all sites are enrolled: grandrounds server bundle DIR",
    ]


def bundle(folder: ServerFolder) -> list[str]:
    """Fix the study, once, and write it as the sites get it; what to do next. Raises StudyError and ModelError."""
    if not (folder.study.path / "study.json").exists():
        manifest, frozen_adapter = _manifest(folder)
        make_folder(folder.study.path)
        folder.save_frozen_adapter(frozen_adapter)
        folder.study.save_manifest(manifest)
    settings = folder.settings()
    study = Bundle(
        manifest=folder.study.manifest(),
        frozen_adapter=folder.frozen_adapter(),
        certificates=(folder.certificates / CA_CERTIFICATE).read_bytes(),
        flower=Flower(address=f"{settings.host}:{settings.port}", app_sha256=app_sha256()),
    )
    study.write(folder.bundle)
    return [
        f"the manifest's hash, for everybody: {study.manifest.sha256}",
        f"send {folder.bundle} to every site; each runs: grandrounds client join DIR study.zip",
        "then: grandrounds server start DIR, and grandrounds server run DIR",
    ]


def _manifest(folder: ServerFolder) -> tuple[Manifest, bytes]:
    """The study with its keys and hashes, and the adapter's frozen tensors, drawn once."""
    study, enrolled = read_study(folder.study_toml), folder.sites()
    named = {site.name for site in study.sites}
    if named != set(enrolled):
        raise StudyError(
            f"the study is of {', '.join(sorted(named))}, and enrolled are {', '.join(sorted(enrolled)) or 'none'}",
            why="every site of a study signs what it releases",
            fix=f"enroll every site, and name those and no others in {folder.study_toml}",
        )
    complete: Study = complete_study(study)
    base = base_model_folder(complete.model.name)
    # A is public: anyone may know the seed that drew it.
    model = LanguageModel.load(base, complete.model.lora, seed=secrets.randbits(63))
    manifest = validated(
        Manifest,
        {
            "study_id": secrets.token_hex(32),
            "study": complete,
            "site_keys": {name: site.public_key for name, site in enrolled.items()},
            "server_key": folder.identity().public_key,
            "dimension": model.layout.dimension,
            "model_sha256": model_folder_sha256(base),
            "frozen_adapter_sha256": model.frozen_adapter_sha256,
            "package_version": __version__,
        },
    )
    return manifest, vector_bytes(model.get_frozen_adapter())


def start(folder: ServerFolder, *, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Run SuperLink, its executor and the gate until ``stopped``; one that ends is started again."""
    commands = _commands(folder)
    running = {name: _started(folder, name, command, say) for name, command in commands.items()}
    try:
        while not stopped():
            for name, process in running.items():
                if not process.running:
                    say(f"{name} ended ({process.exit_code}); it is started again")
                    time.sleep(_RESTART_S)
                    running[name] = _started(folder, name, commands[name], say)
            time.sleep(_WATCH_S)
    finally:
        for process in reversed(running.values()):
            process.stop()


def _started(folder: ServerFolder, name: str, command: list[str | Path], say: Callable[[str], None]) -> Process:
    process = Process(
        command,
        log=folder.flower / f"{name}.log",
        env=environment(FLWR_HOME=str((folder.flower / "home").absolute())),
    )
    say(f"{name} is up, process {process.pid}")
    return process


def _commands(folder: ServerFolder) -> dict[str, list[str | Path]]:
    settings, tls, programs = folder.settings(), folder.certificates, Path(sys.executable).parent
    superlink = f"localhost:{settings.superlink_port}"
    return {
        "superlink": [
            programs / "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(settings.superlink_port)),
            *("--ssl-ca-certfile", tls / CA_CERTIFICATE),
            *("--ssl-certfile", tls / CERTIFICATE, "--ssl-keyfile", tls / CERTIFICATE_KEY),
            "--enable-supernode-auth",
            *("--isolation", "process", "--superexec-auth-secret-file", folder.secret),
            "--disable-runtime-dependency-installation",
            *("--database", folder.flower / "superlink.db"),
        ],
        "superexec": [
            programs / "flower-superexec",
            *("--runtime-api-address", superlink, "--root-certificates", tls / CA_CERTIFICATE),
            *("--superexec-auth-secret-file", folder.secret),
        ],
        "gate": [
            *(sys.executable, "-P", "-m", f"{__package__}.gate"),
            *("0.0.0.0", str(settings.port), superlink, tls),  # noqa: S104 (the gate is what hospitals reach)
        ],
    }


def run(folder: ServerFolder) -> Iterator[dict[str, Any]]:
    """Start the study's run, or follow the one that runs; what happens, until it is finished or stopped.

    The same command goes on with a study whose run has ended early, from its last checkpoint.
    """
    start_at = folder.progress.stat().st_size if folder.progress.exists() else 0
    if not folder.is_running:
        _await_superlink(folder)
        register_nodes(folder)
        FlowerCli(folder).run()
    yield from follow(folder, start_at)


def _await_superlink(folder: ServerFolder) -> None:
    """Until the SuperLink takes connections, which it does some seconds after its start. Raises StudyError."""
    address = ("127.0.0.1", folder.settings().superlink_port)
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise StudyError(
                    f"no SuperLink answers at port {address[1]}",
                    why="the study reaches its sites through it",
                    fix="start it with `grandrounds server start`, as a service of its own",
                ) from error
            time.sleep(_WATCH_S)
        else:
            return


def register_nodes(folder: ServerFolder) -> None:
    """Enrol at Flower the nodes of the sites that it does not know yet."""
    flower, sites = FlowerCli(folder), folder.sites()
    for name, site in sites.items():
        if not site.registered:
            flower.register(name, site.node_key)
            sites[name] = site.model_copy(update={"registered": True})
            folder.save_sites(sites)


def follow(folder: ServerFolder, start_at: int, *, patience_s: float = 60.0) -> Iterator[dict[str, Any]]:
    """The lines of the progress from ``start_at`` on. Raises StudyError where the run ended without a word."""
    alive = time.monotonic()
    while True:
        lines, start_at = _new_lines(folder, start_at)
        for event in lines:
            yield event
            if event["event"] in ("finished", "stopped"):
                return
        if lines or folder.is_running:
            alive = time.monotonic()
        if time.monotonic() - alive > patience_s:
            raise StudyError(
                "the run has ended, or never began",
                why="the study goes on only while its ServerApp runs",
                fix="look into flower/superexec.log and flower/superlink.log; then run the same command again",
            )
        time.sleep(_WATCH_S)


def _new_lines(folder: ServerFolder, start_at: int) -> tuple[list[dict[str, Any]], int]:
    if not folder.progress.exists():
        return [], start_at
    with folder.progress.open("rb") as file:
        file.seek(start_at)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start_at + len(whole)


def _last(lines: list[dict[str, Any]], *events: str) -> dict[str, Any]:
    """The last line of one of these kinds, or none of its fields."""
    return next((line for line in reversed(lines) if line["event"] in events), {})


def status(folder: ServerFolder) -> dict[str, Any]:
    """Where the study stands, by its ledger and its progress."""
    lines, _ = _new_lines(folder, 0)
    audit = Audit.of(folder.study.ledger_lines())
    manifest = folder.study.manifest() if (folder.study.path / "study.json").exists() else None
    ready, closed = _last(lines, "StudyReady"), _last(lines, "RoundClosed")
    stopped = _last(lines, "stopped", "finished")
    return {
        "running": folder.is_running,
        "sites": {name: site.registered for name, site in folder.sites().items()},
        "manifest": None if manifest is None else manifest.sha256,
        "signed": sorted(audit.countersigned),
        "rounds": [len(audit.rounds), None if manifest is None else manifest.study.training.rounds],
        "attempts": [len(audit.attempts), None if manifest is None else manifest.max_attempts],
        "epsilon": ready.get("epsilon"),
        "epsilon_spent": closed.get("epsilon_spent"),
        "perplexity": closed.get("perplexity"),
        "closed": audit.closed is not None,
        "closing_signatures": sorted(audit.closing_signatures),
        "last_error": stopped.get("diagnosis"),
    }
