"""The site operator's road into a study, and out of it. Each step may be repeated, and says what comes next."""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Final

from ...client.budget.agreement import join
from ...client.budget.patients import FingerprintKey, Patients
from ...client.budget.policy import POLICY, Policy
from ...client.budget.reservations import Reservations
from ...client.minimisation.minimiser import check_columns
from ...client.node.folder import NodeSettings
from ...client.site.folder import FINGERPRINT_KEY, KEY, SETTINGS, SiteFolder, SiteSettings
from ...client.site.joined_study import FROZEN_ADAPTER, PUBLIC_RECORDS, JoinedStudy
from ...client.site.prepared import places
from ...client.site.site_log import SiteLog
from ...client.site.survey import Survey
from ...client.state.database import DATABASE, SiteDatabase
from ...client.state.site_state import SiteState
from ...common.crypto.identity import canonical_json, make_key, shown_key
from ...common.data.records import count_records
from ...common.errors import OtherProgramError, StoppedError, StorageError, StudyError
from ...common.ledger.message_sizes import largest_request_bytes
from ...common.model.devices import PROCESSORS
from ...common.schema import as_toml, known, validated
from ...common.sources.source import DataSource
from ...common.study.artefacts import AUDIT, MANIFEST
from ...common.system.files import fsync, make_private_folder, write_atomically, write_missing
from ...common.system.locks import in_turn
from .. import templates
from ..builtin.models import base_model_folder
from ..enrolment.bundle import Bundle, SiteCard
from ..enrolment.node_keys import make_node_key, make_secret, node_public_key
from .owner import done_as
from .services import write_site_units
from .site_data import data_toml
from .terms import Terms
from .users import SiteUsers, hand_over, operators_users, worker_of

CARD: Final = "site.json"
_JOINING: Final = "joining.lock"
_UNFINISHED: Final = "recovering"
_SETTINGS: Final = """# This site's machine. Paths start from this folder.
name = {name}
{data}
model = {model}                   # the folder of the base model
{devices}
# shard = "auto"                  # "on": each of several devices holds a part of the base model; "off": all of it
# checkpointing = "auto"          # "on" computes activations again, which saves memory; "off" keeps them
{held_out:34}# records that nothing trains on: `client fetch` measures the finished adapter on them
# similar_identifiers = "same"    # patients whose ids differ in spelling alone (A-7, a-07): "same" or "different" ones
# Two users, where root starts the site: one reads the records and has the key, the other talks to the server.
{worker_user}
{node_user}
# socket = "run/worker.sock"      # in each study's folder; elsewhere with its name: "/run/site/{{study}}/worker.sock"
# users = []                      # ids of further users who may ask the workers
# training_view = true            # the worker writes what each step was, for `client watch`: no noise protects that
{runtime_port:34}# of the first study's SuperNode, on loopback; the others' are above it
{tables}"""


def init(
    folder: SiteFolder,
    *,
    name: str,
    data: DataSource | Path,
    held_out: DataSource | None = None,
    model: str,
    devices: Sequence[str] = (PROCESSORS,),
    worker_user: str | None = None,
    node_user: str | None = None,
    runtime_port: int | None = None,
) -> list[str]:
    """Make a site's keys, settings and policy, where they are missing; what to do next.

    ``devices`` are where the model computes, the two users are whom the site's parts run as, and ``runtime_port`` is
    another than the usual. Raises StudyError, also where the folder names other users, DataError and ModelError where
    the worker's user cannot use what it is to read, and then nothing is made; and StorageError.
    """
    SiteUsers.named(worker_user, node_user)
    path, node_key = folder.path, folder.node_key
    if (path / SETTINGS).exists():
        settings = folder.settings()
        stated = (settings.worker_user, settings.node_user)
        if (worker_user, node_user) not in ((None, None), stated):
            raise StudyError(
                f"{path / SETTINGS} has worker_user and node_user = {stated}",
                why="who runs what is read from there",
                fix="edit it, and repeat this command without the two options",
            )
        _settle(folder)  # or the worker's user could not read what the operator has put there since
    else:
        records = {"data": DataSource.of(data).below(Path.cwd()), "held_out": held_out}
        places = {**records, "model": base_model_folder(model).absolute()}
        users = {"worker_user": worker_user, "node_user": node_user}
        port = {} if runtime_port is None else {"runtime_port": runtime_port}
        given = {"name": name, **places, "devices": devices, **users, **port}
        settings = validated(SiteSettings, given, why="site.toml says so of this machine, and nothing else does")
    policy = folder.policy() if (path / POLICY).exists() else Policy()
    check_columns(policy.minimise, settings.data)
    found = done_as(worker_of(settings), lambda: Survey.of(settings, policy).lines)
    make_private_folder(path)
    write_missing(path / SETTINGS, lambda: _text_of(settings))
    template = resources.files(templates).joinpath("policy.basic.toml")
    write_missing(path / POLICY, template.read_bytes)
    _settle(folder)  # before anything is read that somebody else could have written
    make_private_folder(node_key.parent)
    _make_state(folder)  # before the key, which shows that there was one
    FingerprintKey.make(path / FINGERPRINT_KEY)
    make_key(path / KEY)
    if not node_key.exists():
        make_node_key(node_key, node_key.with_suffix(".pub"))
    card = SiteCard(
        name=settings.name,
        public_key=folder.identity().public_key,
        node_key=node_public_key(node_key),
        minimised=policy.minimise.in_words,
    )
    write_atomically(path / CARD, canonical_json(card.model_dump(mode="json")))
    log = SiteLog(folder)
    if not log.has_begun:
        log.note("initialised", key=card.public_key)
    readable = [f"see to it that no other user than {settings.worker_user} can read {_paths(settings)}"]
    _settle(folder)
    return [
        *found,
        *policy.minimise.told,
        f"this site's key, to be compared with whoever asks: {shown_key(card.public_key)}",
        f"send {path / CARD} to the server's operator",
        *(readable if settings.worker_user else []),
        f"edit {path / POLICY}: what this site allows a study to be",
        f"then, with each study that a server's operator sends: grandrounds client join {path} study.zip",
    ]


def _make_state(folder: SiteFolder) -> None:
    """Make the site's state, unless it is there. Raises StorageError where there was one, and is none."""
    lived = folder.has_lived

    def make() -> None:
        if not SiteDatabase.is_in(folder.state):
            if lived:
                SiteDatabase.open_existing(folder.state)
            SiteDatabase.open(folder.state).close()

    done_as(worker_of(folder.settings()), make)


def recover(folder: SiteFolder) -> list[str]:
    """Start again after the state was lost, with everything spent; what that means.

    The policy's data asset is registered with nothing left for the patients of the records at hand, and studies
    that were joined are left. Raises StudyError where a state is there, StorageError, DataError and PrivacyError.
    """
    settings, policy, key = folder.settings(), folder.policy(), folder.path / FINGERPRINT_KEY

    def spent() -> None:
        if SiteDatabase.is_in(folder.state):
            raise StudyError(
                f"{folder.state} holds the site's state",
                why="what its patients have left stands there, and would be lost",
                fix="go on with it; if it is damaged, move the folder away first, and keep it",
            )
        unfinished = folder.state / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        database = SiteDatabase.open(unfinished)
        try:
            reservations, asset = Reservations(database), policy.data.data_asset()
            reservations.register(asset)
            reservations.spend(asset.name)
            known = count_records(settings.data, "same").identifiers  # of all of them, however one is written
            Patients(database, FingerprintKey.read(key)).claim(asset.name, known)
        finally:
            database.close()
        (unfinished / DATABASE).rename(folder.state / DATABASE)  # not before all of it is spent
        fsync(folder.state)
        unfinished.rmdir()

    _settle(folder)
    FingerprintKey.make(key)
    _settle(folder)
    done_as(worker_of(settings), spent)
    SiteLog(folder).note("recovered", asset=policy.data.asset)
    left = [study.forget() for study in folder.joined()]
    return [
        f"nothing is left of the budget of {policy.data.asset}, for the patients in {_paths(settings)}",
        "what was spent of others is forgotten: never give a patient whom a study has read an asset of another name",
        *(f"this site has left a study, of which all that was here is now in {each}" for each in left),
    ]


def _text_of(settings: SiteSettings) -> bytes:
    stated = {"name": as_toml(settings.name), "model": as_toml(settings.model)}
    users = {name: _stated(name, getattr(settings, name)) for name in ("worker_user", "node_user")}
    devices = f"devices = {as_toml(settings.devices):23}# cpu, or GPUs, each for a part of a step: cuda:0, cuda:1"
    usual = settings.runtime_port == SiteSettings.model_fields["runtime_port"].default
    port = f"{'# ' if usual else ''}runtime_port = {settings.runtime_port}"
    return _SETTINGS.format(**stated, **users, **data_toml(settings), devices=devices, runtime_port=port).encode()


def _paths(settings: SiteSettings) -> str:
    return ", ".join(map(str, settings.data.paths))


def _stated(name: str, value: str | None) -> str:
    return f'# {name} = "grandrounds-{name.partition("_")[0]}"' if value is None else f"{name} = {json.dumps(value)}"


def _settle(folder: SiteFolder) -> None:
    """Each user gets its part of what was written. Raises StudyError and StorageError."""
    users = operators_users(folder.settings())
    if users is not None:
        hand_over(folder, users)


def join_study(folder: SiteFolder, bundle: Bundle, *, agreed: Callable[[Terms], bool]) -> list[str]:
    """Join a study that policy, budget and data allow, if the operator has ``agreed`` to its terms; what to do next.

    Nothing is reserved or written before that. Raises StoppedError where nobody agreed, what ``Terms.of`` does, and
    StorageError.
    """
    manifest, policy, settings = bundle.manifest, folder.policy(), folder.settings()
    worker, study = worker_of(settings), folder.of(manifest.study_id)
    # Its manifest may be one that another version wrote, before this successor.
    study_id, joined = study.identity() if study in folder.joined() else (manifest.study_id, "")
    if study_id != manifest.study_id:
        raise StudyError(
            f"{study.path} is another study's",
            why="each has a folder of its own, by the beginning of its id",
            fix="ask the study's author to make it anew, with another id",
        )
    _settle(folder)  # or the worker's user could not read what the operator has edited since
    terms = Terms.of(folder, manifest)
    if not agreed(terms):
        raise StoppedError(
            "nothing was joined, and nothing more was reserved",
            why="a site takes part only in what its operator agreed to",
            fix="to agree after all, repeat the command; where nobody can be asked, --yes agrees, and --new-asset to a "
            "data asset that is new",
        )
    if joined != manifest.sha256:
        log = SiteLog(folder)
        if terms.beside:
            log.note("asset-added", asset=terms.asset, beside=terms.beside)
        log.note("agreed", study=manifest.study_id, manifest=manifest.sha256, budget=terms.budget)

    def reserve() -> None:
        database = SiteDatabase.open_existing(folder.state)
        try:
            join(manifest, policy, name=settings.name, reservations=Reservations(database))
        finally:
            database.close()

    done_as(worker, reserve)
    with in_turn(folder.path / _JOINING):  # two who join at once are given two ports
        _write_study(folder, study, settings, bundle)
    units = write_site_units(folder, study)
    _settle(folder)
    path, name = folder.path, study.name
    return [
        f"joined {name}; the manifest's hash, to be compared with the other sites: {manifest.sha256}",
        f"next: grandrounds client prepare {path} {name}, which may take long; it goes on where it was interrupted",
        f"then: grandrounds client check {path} {name}",
        f"then: grandrounds client start {path}, for all studies of this site; where it runs already, stop it first",
        *units,
    ]


def _write_study(folder: SiteFolder, study: JoinedStudy, settings: SiteSettings, bundle: Bundle) -> None:
    path, manifest, socket = study.path, bundle.manifest, study.socket(settings.socket)
    write_atomically(path / FROZEN_ADAPTER, bundle.frozen_adapter)
    if bundle.public is not None:
        write_atomically(path / PUBLIC_RECORDS, bundle.public)
    if bundle.audit is not None:
        write_atomically(path / AUDIT, bundle.audit)
    taken = {other.node.runtime_port for other in folder.joined() if other != study}
    node = NodeSettings(
        address=bundle.flower.address,
        app_sha256=known(manifest.app_sha256),
        socket=socket.relative_to(path) if socket.is_relative_to(path) else socket,
        runtime_port=next(port for port in count(settings.runtime_port) if port not in taken),
        timeout_s=manifest.study.training.deadline_s,
        largest_bytes=largest_request_bytes(manifest, frozen_bytes=len(bundle.frozen_adapter)),
        package_version=manifest.package_version,
        package_sha256=manifest.package_sha256,
    )
    study.node.save(node, certificates=bundle.certificates)
    write_atomically(study.node.key, folder.node_key.read_bytes(), mode=0o600)
    if not study.node.secret.exists():
        make_secret(study.node.secret)
    for own in (folder.prepared, study.store, study.kept, study.node.written):
        make_private_folder(own)
    write_atomically(path / MANIFEST, manifest.canonical)


def leave(folder: SiteFolder, study: JoinedStudy) -> list[str]:
    """Take part in a study no more; what to tell the server's operator. What was spent stays spent.

    Raises StudyError where it was not joined or its worker runs, and StorageError.
    """
    worker, (study_id, sha256) = worker_of(folder.settings()), study.identity()
    try:
        begun = done_as(worker, lambda: _cancelled(folder, study, study_id))
    except StorageError as error:
        raise StudyError(f"the study cannot be left: {error.what}", why=error.why, fix=error.fix) from error
    is_over = study.results.is_dir()  # which the worker keeps once it has checked the study's end
    SiteLog(folder).note("left", study=study_id, manifest=sha256, over=is_over, begun=begun)
    without = _without(study)
    left = study.forget()
    name = folder.settings().name
    prepared = []
    if done_as(worker, lambda: bool(places(folder.prepared))):
        remove = f"grandrounds client data --delete {folder.path}"
        prepared = [f"its records stay prepared, for the next study that reads them alike; or remove that: {remove}"]
    if is_over:
        rest = [
            "the study is finished: this site took part to its end, nobody waits for it, and nobody need be told",
            f"what the study left stays in {left / 'results'}, and what it reserved of the budget stays spent",
        ]
    else:
        rest = [
            "what it reserved of the budget stays spent: an attempt was begun, and when to stop is chosen along the way"
            if begun
            else "no attempt was begun here, so that the budget has back what it reserved",
            f"tell the server's operator: {name} has left, with manifest {sha256[:16]}…; {without}",
            "what was released before stays released; the study's claim bounds what it says of any patient",
        ]
    return [
        f"this site has left study {study.name}, of which all that was here is now in {left}",
        *rest,
        *prepared,
        f"for another study, with the same budget: grandrounds client join {folder.path} study.zip",
    ]


def _without(study: JoinedStudy) -> str:
    try:
        manifest = study.manifest()
    except OtherProgramError:  # a site leaves a study of another version, too, and has its budget back
        return "whether the study goes on follows from how many of its sites must answer"
    threshold, others = manifest.threshold, len(manifest.site_keys) - 1
    if threshold > others:
        return f"the study goes no further, for all {threshold} of its sites must answer"
    return f"the study goes on while {threshold} of the other {others} answer"


def _cancelled(folder: SiteFolder, joined: JoinedStudy, study: str) -> bool:
    """Give back what was reserved, unless an attempt was begun; whether one was. Raises StorageError."""
    budget = SiteState.open_existing(folder.state, lock=joined.lock)
    try:
        begun = budget.last_attempt(study) > 0
        reservations = Reservations(budget.database)
        held = {reservation.study for each in reservations.statements() for reservation in each.reservations}
        if not begun and study in held:  # it is not where this was begun before, and broken off
            reservations.cancel(study)
        return begun
    finally:
        budget.close()
