"""The server operator's road up to a study's first run: init, enroll, bundle, start. Each may be repeated.

Each returns lines for its caller, the last of which say what comes next.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from ...common.crypto.identity import make_key, shown_key
from ...common.errors import StorageError, StudyError
from ...common.study.about import AboutSection
from ...common.study.study import Study, read_study
from ...common.system.files import make_private_folder, write_atomically, write_missing
from ...common.system.supervision import tend
from ...server.run.server_folder import KEY, SETTINGS, EnrolledSite, ServerFolder
from .. import templates
from ..enrolment.bundle import SiteCard
from ..enrolment.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    CERTIFICATE,
    CERTIFICATE_KEY,
    check_certificates,
    make_certificates,
)
from ..enrolment.node_keys import make_secret, public_pem
from ..plan.spare_site import no_spare_site
from .about import check_said, with_about
from .certificate_watch import RENEW_WITHIN, CertificateWatch
from .flwr import FlowerControl
from .programs import ServerPrograms
from .services import write_server_units

_TEMPLATE: Final = Path(str(resources.files(templates).joinpath("study.server.toml")))
_SETTINGS: Final = """# Hospitals connect to host:port; the gate listens on the address bind.
host = {host}
bind = "0.0.0.0"
port = {port}
superlink_port = {superlink_port}          # of Flower's SuperLink, on loopback alone

# Records that adapters are evaluated on, without noise: public or synthetic, and no patient's.
evaluation = {evaluation}
evaluation_source = "records that the server's operator gave"

# model = "/srv/models/base"      # the base model's folder, where its name in study.toml does not find it
"""


def init(
    folder: ServerFolder,
    *,
    host: str,
    port: int,
    superlink_port: int,
    certificates: tuple[Path, Path, Path] | None = None,
    study: Path | None = None,
    evaluation: Path | None = None,
    about: AboutSection | None = None,
) -> list[str]:
    """Make keys, certificates, settings and a study to edit, where they are missing.

    ``certificates`` are given ones for the gate: certificate with its chain, its key, and the authority that sites are
    to trust. ``study`` is a file to begin with, such as `plan` writes, ``evaluation`` the evaluation records, and
    ``about`` what the study is to say of itself. Raises StudyError, also where the folder has other settings or its
    study says otherwise, and StorageError.
    """
    about, file = about or AboutSection(), study or _TEMPLATE
    stated = read_study(file)
    if folder.study_toml.exists():
        check_said(folder.study_toml, about)
        if study is not None and _without_about(read_study(folder.study_toml)) != _without_about(stated):
            raise StudyError(
                f"{folder.study_toml} is there, and is another study than {study}",
                why="what stands in it may have been edited, and is not written over",
                fix=f"remove it, or begin a study beside it: grandrounds server study new {folder.home.path} NAME",
            )
    make_private_folder(folder.path)
    make_key(folder.path / KEY)
    fields = {"host": json.dumps(host), "port": port, "superlink_port": superlink_port}
    given = "evaluation.jsonl" if evaluation is None else str(evaluation.absolute())
    folder.write_settings(_SETTINGS.format(**fields, evaluation=json.dumps(given, ensure_ascii=False)))
    settings = folder.settings()
    if evaluation is not None and settings.evaluation.resolve() != evaluation.resolve():
        raise StudyError(
            f"{folder.path / SETTINGS} names the evaluation records {settings.evaluation}",
            why="what stands in it may have been edited, and is not written over",
            fix=f"edit it, or leave out --evaluation {evaluation}",
        )
    if (settings.host, settings.port, settings.superlink_port) != (host, port, superlink_port):
        raise StudyError(
            f"{folder.path / SETTINGS} has {settings.address} and the SuperLink's port {settings.superlink_port}",
            why="sites know the server by what it says",
            fix=f"edit it, or give --host {settings.host} --port {settings.port} "
            f"--superlink-port {settings.superlink_port}",
        )
    if certificates is not None:
        _take_certificates(folder.certificates, certificates, host)
    _certify(folder.certificates, host)
    _prepare_flower(folder)
    today = datetime.now(UTC).date().isoformat()
    dated = about.model_copy(update={"dated": about.dated or stated.about.dated or today})
    write_missing(folder.study_toml, lambda: with_about(file.read_text(encoding="utf-8"), dated).encode())
    return [
        "this server's key, for every site to compare:",
        f"  {shown_key(folder.identity().public_key)}",
        *write_server_units(folder),
        f"edit {folder.study_toml} until it is the study you mean; in it a site has the name of its site.json",
        *([] if settings.evaluation.exists() else [f"put public or synthetic records there: {settings.evaluation}"]),
        *filter(None, [no_spare_site(sites=len(stated.sites), threshold=stated.threshold)]),
        f"next: {once_enrolled(folder)}",
    ]


def _without_about(study: Study) -> Study:
    return study.model_copy(update={"about": AboutSection()})


def enroll(folder: ServerFolder, *cards: Path) -> list[str]:
    """Know sites by their cards, all or none, and let their nodes in if the server is started.

    Raises StudyError and StorageError.
    """
    said = []
    with folder.enrolling():
        sites, withdrawn = dict(folder.sites()), folder.withdrawn
        for site in map(SiteCard.read, cards):
            _check_keys(site, sites)
            known = sites.get(site.name)
            if known is None or public_pem(known.node_key) != public_pem(site.node_key):
                sites[site.name] = EnrolledSite(public_key=site.public_key, node_key=site.node_key)
                # A site with another node key may have lost its machine: whoever has that is let in no more.
                withdrawn |= _node_of(known)
            said += [f"{site.name}'s key, to be compared with the site by telephone, not by mail:"]
            said += [f"  {shown_key(site.public_key)}"]
            if site.minimised:
                stated = json.dumps(site.minimised, ensure_ascii=False)
                said += [f"{site.name} takes something out of its records; its table may say so: minimised = {stated}"]
        folder.save_sites(sites, withdrawn=withdrawn)
    if folder.is_serving:
        admit_nodes(folder)
    return [*said, f"enrolled: {', '.join(folder.sites())}", f"next: {once_enrolled(folder)}"]


def once_enrolled(folder: ServerFolder) -> str:
    """What comes next, by who is enrolled and whom study.toml names."""
    if folder.has_study:
        return f"grandrounds server bundle {folder.path}, which says whether the study has these sites and keys"
    try:
        named, enrolled = {site.name for site in read_study(folder.study_toml).sites}, folder.sites().keys()
    except StudyError as error:
        return f"correct {folder.study_toml}: {error.what}"
    if missing := sorted(named - enrolled):
        return f"grandrounds server enroll {folder.path} site.json, for {', '.join(missing)}"
    if unnamed := sorted(enrolled - named):
        return f"name {', '.join(unnamed)} in {folder.study_toml}, or grandrounds server dismiss {folder.path} SITE"
    return f"grandrounds server bundle {folder.path}"


def _node_of(site: EnrolledSite | None) -> set[int]:
    return set() if site is None or site.node_id is None else {site.node_id}


def _check_keys(site: SiteCard, sites: Mapping[str, EnrolledSite]) -> None:
    """Raises StudyError unless the site has one key, and the key one site."""
    known = sites.get(site.name)
    if known is not None and known.public_key != site.public_key:
        raise StudyError(
            f"{site.name} is enrolled with another key, {shown_key(known.public_key)}",
            why="whoever can change a site's key can speak in its name",
            fix="ask the site which is its own; a site that lost its key takes another name, or signs a successor",
        )
    node_key = public_pem(site.node_key)  # of a line of OpenSSH's, which may end in a comment
    for name, other in sites.items():
        if name != site.name and (other.public_key == site.public_key or public_pem(other.node_key) == node_key):
            raise StudyError(
                f"{site.name} has a key of {name}",
                why="two names of one site would count as two who can be trusted apart",
                fix="every site makes its own with `grandrounds client init`",
            )


def admit_nodes(folder: ServerFolder) -> None:
    """Have Flower let in the nodes of all enrolled sites, and no others. Raises StudyError.

    Who is enrolled, and who is no more, is written before Flower hears of it: whoever is killed in between, or cannot
    reach it, leaves it to the next start. Flower's database may have been lost, too.
    """
    flower = FlowerControl(folder)
    with folder.enrolling():
        known = {node.node_id for node in flower.nodes()}
        for gone in known & folder.withdrawn:
            flower.unregister(gone)
        known -= folder.withdrawn
        folder.save_sites(folder.sites(), withdrawn=())
        for name, site in folder.sites().items():
            if site.node_id in known:
                continue
            node_id = flower.register(name, site.node_key)
            if node_id is None:
                node_id = _unnoted(folder, name, known)
            folder.save_sites({**folder.sites(), name: site.model_copy(update={"node_id": node_id})})
        for stranger in known - {site.node_id for site in folder.sites().values()}:
            flower.unregister(stranger)


def _unnoted(folder: ServerFolder, name: str, known: set[int]) -> int:
    """The id of a node that was enrolled by a process that did not come to note it: the one that no site has."""
    strangers = known - {site.node_id for site in folder.sites().values()}
    if len(strangers) != 1:
        raise StudyError(
            f"Flower knows the node key of {name}, and under which id cannot be told",
            why="its key may have been withdrawn, or somebody else has enrolled nodes",
            fix=f"have {name} remove node/node.key and node/node.pub, repeat `client init`, and send its site.json",
        )
    return strangers.pop()


def dismiss(folder: ServerFolder, name: str) -> list[str]:
    """Know a site no more, and let its node in no more. Raises StudyError where there is no such site."""
    with folder.enrolling():
        sites = folder.sites()
        if name not in sites:
            raise StudyError(
                f"{name} is not enrolled",
                why="only a site that is can be dismissed",
                fix=f"name one of {', '.join(sites) or 'those that you enroll'}",
            )
        left = sites.pop(name)
        folder.save_sites(sites, withdrawn=folder.withdrawn | _node_of(left))
    if folder.is_serving:
        admit_nodes(folder)
    return [
        f"enrolled: {', '.join(sites) or 'nobody'}",
        f"next: take {name} out of {folder.study_toml}; then `grandrounds server bundle {folder.path}`, or, if the",
        f"  study has begun, `grandrounds server amend {folder.path}`",
    ]


def start(folder: ServerFolder, *, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Run SuperLink, executor and gate until ``stopped``. Raises StudyError and StorageError."""
    settings = folder.settings()
    check_certificates(folder.certificates, settings.host, now=datetime.now(UTC))
    _prepare_flower(folder)
    programs = ServerPrograms(folder=folder, say=say)
    with folder.serving(), programs.up():
        admit_nodes(folder)
        say(f"{settings.address} is open for: {', '.join(folder.sites()) or 'nobody yet'}")
        run = f"next, once they have run `grandrounds client start`: grandrounds server run {folder.path}"
        say(run if folder.has_study else f"next, once every site is enrolled: grandrounds server bundle {folder.path}")
        tend([*programs.running, CertificateWatch(folder, say)], stopped)


def _prepare_flower(folder: ServerFolder) -> None:
    """What Flower's programs on this machine need among themselves."""
    make_private_folder(folder.flower)
    _certify(folder.inside, "localhost")
    if not folder.secret.exists():
        make_secret(folder.secret)
    FlowerControl(folder).configure()


def _certify(folder: Path, host: str) -> None:
    """A certificate that can serve for a while, of the authority that is there. Raises StudyError and StorageError."""
    now, serves = datetime.now(UTC), False
    with suppress(StudyError, StorageError):
        serves = check_certificates(folder, host, now=now) >= RENEW_WITHIN
    was_given = (folder / CA_CERTIFICATE).exists() and not (folder / CA_KEY).exists()
    if not serves and not was_given:
        make_certificates(folder, host)
    check_certificates(folder, host, now=now)


def _take_certificates(folder: Path, certificates: tuple[Path, Path, Path], host: str) -> None:
    """Copy given ones to where the gate finds them, once they can serve ``host``: for others nothing is lost.

    Raises StudyError and StorageError.
    """
    given = {}
    for source, name in zip(certificates, (CERTIFICATE, CERTIFICATE_KEY, CA_CERTIFICATE), strict=True):
        try:
            given[name] = source.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{source} cannot be read: {error.strerror}",
                why="the gate shows the certificate, and sites trust the authority",
                fix="give the three files --certificate, --certificate-key and --ca",
            ) from error
    with TemporaryDirectory(dir=folder.parent) as beside:  # which nobody else may enter
        _write_certificates(Path(beside), given)
        check_certificates(Path(beside), host, now=datetime.now(UTC))
    _write_certificates(folder, given)
    (folder / CA_KEY).unlink(missing_ok=True)  # of another authority than the one given


def _write_certificates(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_atomically(folder / name, data, mode=0o600 if name == CERTIFICATE_KEY else 0o644)
