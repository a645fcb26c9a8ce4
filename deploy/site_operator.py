"""The site operator's road: init, join, start. Each may be repeated, and says what comes next."""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

from ..client.agreement import Agreement, join
from ..client.policy import check_policy
from ..client.reservations import Reservations
from ..client.site import (
    FROZEN_ADAPTER,
    KEY,
    MANIFEST,
    POLICY,
    SETTINGS,
    SiteFolder,
    open_model,
    open_update,
)
from ..client.site_database import SiteDatabase
from ..client.unit import Unit
from ..common.errors import StudyError
from ..common.files import make_private_folder, write_atomically, write_missing
from ..common.identity import canonical_json
from ..common.key_file import make_key
from ..common.processes import Process, environment
from .base_model import base_model_folder
from .bundle import Bundle, Flower, SiteCard
from .provision import make_node_key, make_secret

CARD: Final = "site.json"
_NODE_KEY, _NODE_PUBLIC = "node.key", "node.pub"
_SECRET, _CA, _FLOWER = "exec.secret", "ca.crt", "flower.json"
_WATCH_S: Final = 0.2
_ROOM: Final = 3.0  # of the deadline over an average step
_SETTINGS: Final = """# This site's machine. Paths start from this folder.
name = {name}
data = {data}                     # .jsonl, .csv or .parquet: read by the worker alone
model = {model}                   # the folder of the base model
# socket = "run/worker.sock"
# users = []                      # ids of users beside the worker's own who may ask it, such as Flower's
# runtime_port = 9094             # of the SuperNode, on loopback
"""


def init(folder: SiteFolder, *, name: str, data: Path, model: str) -> list[str]:
    """Make a site's keys, settings and policy, where they are missing; what to do next. Raises StorageError."""
    path = folder.path
    make_private_folder(path)
    make_key(path / KEY)
    if not (path / _NODE_KEY).exists():
        make_node_key(path / _NODE_KEY, path / _NODE_PUBLIC)
    if not (path / _SECRET).exists():
        make_secret(path / _SECRET)
    if not (path / SETTINGS).exists():
        base = base_model_folder(model)
        fields = {"name": name, "data": str(data.absolute()), "model": str(base.absolute())}
        text = _SETTINGS.format(**{field: json.dumps(value) for field, value in fields.items()})
        write_atomically(path / SETTINGS, text.encode())
    template = resources.files(__package__).joinpath("templates/policy.basic.toml")
    write_missing(path / POLICY, template.read_bytes)
    card = SiteCard(
        name=folder.settings().name,
        public_key=folder.identity().public_key,
        node_key=(path / _NODE_PUBLIC).read_text("ascii").strip(),
    )
    write_atomically(path / CARD, canonical_json(card.model_dump(mode="json")))
    return [
        f"this site's key, to be compared with whoever asks: {card.public_key}",
        f"send {path / CARD} to the server's operator",
        f"edit {path / POLICY}: what this site allows a study to be",
        "then, with the study that the server's operator sends: grandrounds client join DIR study.zip",
    ]


def join_study(folder: SiteFolder, bundle: Bundle, *, agreed: Callable[[Agreement], bool]) -> list[str]:
    """Join a study that the policy and the budget allow, if the operator has ``agreed``; what to do next.

    Nothing is reserved or written before that. Raises StudyError, PrivacyError and StorageError.
    """
    path, manifest, policy = folder.path, bundle.manifest, folder.policy()
    if (path / MANIFEST).exists() and folder.manifest().study_id != manifest.study_id:
        raise StudyError(
            "this folder has joined another study",
            why="a site's worker answers for one study",
            fix="use a folder of its own for another study, with the same state only by way of one data asset",
        )
    name = folder.settings().name
    trial = SiteDatabase.in_memory()
    try:
        agreement = join(manifest, policy, name=name, reservations=Reservations(trial))
    finally:
        trial.close()
    if not agreed(agreement):
        return ["nothing was joined"]
    database = SiteDatabase.open(folder.state)
    try:
        join(manifest, policy, name=name, reservations=Reservations(database))
    finally:
        database.close()
    write_atomically(path / FROZEN_ADAPTER, bundle.frozen_adapter)
    write_atomically(path / _CA, bundle.certificates)
    write_atomically(path / _FLOWER, canonical_json(bundle.flower.model_dump(mode="json")))
    write_atomically(path / MANIFEST, canonical_json(manifest.model_dump(mode="json")))
    return [
        f"joined {manifest.study_id[:12]}; the manifest's hash, to be compared with the other sites: {manifest.sha256}",
        "then: grandrounds client check DIR, and grandrounds client start DIR",
    ]


def check(folder: SiteFolder) -> list[str]:
    """One real private step on the site's own records, of which nothing is kept or sent; what it took.

    Nothing is reserved. Raises what a worker's start would: StudyError, ModelError, DataError, StorageError.
    """
    settings, manifest, policy = folder.settings(), folder.manifest(), folder.policy()
    check_policy(policy, manifest, name=settings.name)
    started = time.monotonic()
    frozen = folder.frozen_adapter()
    model = open_model(settings, manifest, identity=folder.identity(), frozen_adapter=frozen)
    update = open_update(settings, manifest, policy, model=model)
    loaded = time.monotonic()
    update(model.get_adapter())
    step_s, deadline_s = time.monotonic() - loaded, manifest.study.training.deadline_s
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # which Linux counts in KiB
    return [
        "policy, model and records fit the study; nothing was sent",
        f"loading took {loaded - started:.0f} s, one step of training {step_s:.1f} s, and at most {gibibytes:.1f} GiB",
        f"the study allows {deadline_s:.0f} s for an answer"
        + ("" if step_s < deadline_s / _ROOM else ": too little room for a draw far above the average"),
    ]


def start(folder: SiteFolder, *, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Run the worker, and what carries its messages, until ``stopped``; a worker that ends is started again."""
    settings, manifest = folder.settings(), folder.manifest()
    flower = Flower.model_validate_json((folder.path / _FLOWER).read_bytes())
    command: list[str | Path] = [Path(sys.executable).with_name("grandrounds"), "client", "worker", folder.path]
    unit = Unit(
        address=flower.address,
        certificates=folder.path / _CA,
        node_key=folder.path / _NODE_KEY,
        secret=folder.path / _SECRET,
        socket=settings.socket,
        app_sha256=flower.app_sha256,
        runtime_port=settings.runtime_port,
        folder=folder.path,
        timeout_s=manifest.study.training.deadline_s,
    )
    worker = Process(command, log=folder.path / "worker.out", env=environment())
    say(f"the worker loads and judges the records, process {worker.pid}")
    ending = threading.Event()
    carrying = threading.Thread(target=unit.run, args=(lambda: ending.is_set() or stopped(),))
    carrying.start()
    try:
        while not stopped() and carrying.is_alive():
            if not worker.running:
                say(
                    f"the worker ended ({worker.exit_code}); it is started again; {folder.path / 'worker.out'} says why"
                )
                time.sleep(5)
                worker = Process(command, log=folder.path / "worker.out", env=environment())
            time.sleep(_WATCH_S)
    finally:
        ending.set()
        carrying.join()
        worker.stop(grace_s=60)
