"""The server operator's road once sites may connect: carry the study out, see where it stands, and its report."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ...common.errors import StorageError, StudyError
from ...common.ledger.replay import VerifiedLedger
from ...common.study.artefacts import LEDGER, REPORT
from ...common.study.manifest import Manifest
from ...common.system.ports import listens
from ...server.report.claim import count
from ...server.report.report import Report
from ...server.rounds.accountant import CentralAccountant
from ...server.rounds.training import ExchangeClosed, accountant_of
from ...server.run.progress import PhaseStarted
from ...server.run.progress_file import Finished, RunBegan, Stopped, Told
from ...server.run.server_folder import ServerFolder
from ..enrolment.bundle import Bundle
from ..enrolment.certificates import check_certificates
from ..flower.archive import app_sha256
from .certificate_watch import RENEW_WITHIN
from .commands import once_enrolled
from .flwr import FlowerControl

_WATCH_S: Final = 0.2
_ONLINE: Final = "online"  # a node's status, of Flower's
_ASK_FLOWER_S: Final = 5.0
_BEGIN_S, _START_S = 30.0, 180.0  # both may have been started at once: until it has begun to, and until it has


def run(folder: ServerFolder) -> Iterator[Told]:
    """Start the study's run, go on with it, or follow the one that runs: what happens, until the study is at its end.

    Whoever stops following stops nothing. Raises StudyError, also with the diagnosis of a run that ended early; the
    same command then goes on from the last checkpoint.
    """
    if not folder.is_running and _is_finished(folder):
        yield Finished()
        return
    yield from _ready(folder)
    if folder.is_running:
        yield from _followed(folder, folder.progress.last_run(), run_id=None)
    else:
        yield PhaseStarted(name="starting", detail="the study's process")
        start = folder.progress.size_bytes
        yield from _followed(folder, start, run_id=FlowerControl(folder).run())


def _is_finished(folder: ServerFolder) -> bool:
    """Whether nothing is left to do: all sites have signed what the study left, and all of it is here."""
    verified = audit(folder)
    if verified.closed is None or not verified.closing_signatures >= set(verified.manifest.site_keys):
        return False
    return folder.study.holds(verified.closed.files)


def _ready(folder: ServerFolder) -> Iterator[PhaseStarted]:
    """Once the server is started; that it is waited for is told. Raises StudyError."""
    if not folder.has_study or not folder.bundle.exists():
        raise StudyError(
            "there is no study yet",
            why="its sites sign what is fixed before",
            fix=f"run: grandrounds server bundle {folder.path}",
        )
    asked, told = time.monotonic(), False
    while not (folder.is_serving and listens(folder.settings().superlink_address)):
        patience_s = _START_S if folder.is_serving else _BEGIN_S
        if not told:
            told, command = True, f"grandrounds server start {folder.path}"
            yield PhaseStarted(name="server", detail=f"is not started yet; waiting {patience_s:g} s for: {command}")
        if time.monotonic() < asked + patience_s:
            time.sleep(_WATCH_S)
            continue
        raise StudyError(
            f"the server is not started, and was not within {patience_s:g} s",
            why="sites reach the study through it",
            fix=f"leave running, in another terminal or as a service: grandrounds server start {folder.path}",
        )
    if Bundle.read(folder.bundle).manifest.app_sha256 != app_sha256():
        raise StudyError(
            "the Flower app's archive is another than the one that the sites pinned",
            why="each of them would refuse it, and every attempt would be lost",
            fix="install again what the study was bundled with: grandrounds, and the same Python",
        )


def _followed(folder: ServerFolder, start: int, *, run_id: int | None) -> Iterator[Told]:
    began, asked = run_id is None, time.monotonic()
    while True:
        alive = folder.is_running if began else not _has_ended(folder, run_id, since=asked)
        if time.monotonic() - asked > _ASK_FLOWER_S:
            asked = time.monotonic()
        events, start = folder.progress.read(start)  # after the question whether it lives: what it said last is there
        for event in events:
            yield event
            began = began or isinstance(event, RunBegan)
            if isinstance(event, Stopped):
                raise StudyError(event.what, why=event.why, fix=event.fix)
            if isinstance(event, Finished):
                return
        if not alive and not events:
            raise StudyError(
                "the run has ended without a word" if began else "the run never began",
                why="the study goes on only while its ServerApp runs",
                fix=f"{folder.flower / 'superexec.log'} says what it met; then run the same command again",
            )
        time.sleep(_WATCH_S)


def _has_ended(folder: ServerFolder, run_id: int | None, *, since: float) -> bool:
    """Whether Flower says so of a run that has not begun; asked only now and then."""
    if run_id is None or time.monotonic() - since <= _ASK_FLOWER_S:
        return False
    return FlowerControl(folder).run_status(run_id).startswith("finished")


def status(folder: ServerFolder) -> dict[str, Any]:
    """Where the study stands, by its ledger; what Flower says of the nodes; and what to do next."""
    verified = audit(folder)
    sites = _sites(folder, _last_losses(folder))
    found: dict[str, Any] = {
        "started": folder.is_serving,
        "running": folder.is_running,
        "sites": sites,
        "signed": sorted(verified.countersigned),
        "closed": verified.closed is not None,
        "closing_signatures": sorted(verified.closing_signatures),
        "certificate": _certificate(folder),
        "last_error": _last_error(folder),
        "next": next_step(folder, verified, [name for name, site in sites.items() if site["connection"] != _ONLINE]),
    }
    if not folder.has_study:
        return found
    manifest = folder.study.manifest()
    accountant, checkpoint = accountant_of(manifest, verified.attempts), folder.study.checkpoint(manifest)
    claimed = accountant.epsilon_of_schedule
    return {
        **found,
        "study": manifest.study_id,
        "manifest": manifest.sha256,
        "rounds": [len(verified.rounds), manifest.study.training.rounds],
        "attempts": [len(verified.attempts), manifest.max_attempts],
        "epsilon_spent": accountant.epsilon_spent,
        "epsilon": None if claimed is None else claimed.epsilon,
        "delta": manifest.delta,
        "epsilon_of_persons": _spent(accountant, manifest),
        "perplexity": None if checkpoint is None else checkpoint.last_evaluated.whole,
    }


def _certificate(folder: ServerFolder) -> str:
    """Until when sites can connect, by what the gate shows them."""
    now = datetime.now(UTC)
    try:
        left = check_certificates(folder.certificates, folder.settings().host, now=now)
    except (StudyError, StorageError) as error:
        return error.what
    near = f", in {count(left.days, 'day')}: `grandrounds server init` renews it" if left < RENEW_WITHIN else ""
    return f"holds until {now + left:%d %B %Y}{near}"


def _spent(accountant: CentralAccountant, manifest: Manifest) -> dict[str, float]:
    """By a number of sites, the ε so far of somebody whose records are at so many, by who paid in each attempt."""
    spent = {m: accountant.spent(m) for m in sorted({1, manifest.study.privacy.sites_per_patient})}
    return {str(m): found.epsilon for m, found in spent.items() if found is not None}


def next_step(folder: ServerFolder, verified: VerifiedLedger, away: Sequence[str] = ()) -> str:
    """The command that brings the study on, or what is waited for; ``away`` are sites that are not connected."""
    program = "grandrounds server"
    if not folder.has_study or not folder.bundle.exists():
        return once_enrolled(folder)
    if verified.closed is not None and verified.closing_signatures >= set(verified.manifest.site_keys):
        return f"{program} report {folder.path}"
    if not folder.is_serving:
        return f"{program} start {folder.path}"
    manifest = folder.study.manifest()
    away = [name for name in away if name in manifest.site_keys]
    connect = f"have {', '.join(away)} run: grandrounds client start DIR (client health DIR says what keeps them)"
    run = f"{program} run {folder.path}"
    if not folder.is_running:
        needed = manifest.threshold if verified.is_in_force(manifest) else len(manifest.site_keys)
        if len(manifest.site_keys) - len(away) < needed:
            return f"{connect}; then {run}"
        return f"{run}, which goes on without {', '.join(away)}" if away else run
    return f"{connect}; the study runs, and waits where it needs them" if away else f"{run}, which follows it"


def report(folder: ServerFolder) -> Report:
    """The report of a study that came to its end. Raises StudyError, and StorageError."""
    path = folder.study.path / REPORT
    if not path.exists():
        raise StudyError(
            "the study has no report yet",
            why="its figures are those of the whole schedule",
            fix=f"bring it to its end: {next_step(folder, audit(folder))}",
        )
    try:
        found: Report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} is damaged",
            why="it is the study's result",
            fix=f"remove it, and write it again from the ledger: grandrounds server run {folder.path}",
        ) from error
    return found


def audit(folder: ServerFolder) -> VerifiedLedger:
    """The ledger as far as it is whole. It may grow while it is read, so that nothing is mended here."""
    path = folder.study.path / LEDGER
    whole, _, _ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    return VerifiedLedger.of(whole.split(b"\n") if whole else [])


def _sites(folder: ServerFolder, lost: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """Who is enrolled, what Flower says of their nodes, and where an attempt last lost them."""
    nodes = {node.node_id: node for node in FlowerControl(folder).nodes()} if folder.is_serving else {}
    found: dict[str, dict[str, str | None]] = {}
    for name, site in folder.sites().items():
        node = None if site.node_id is None else nodes.get(site.node_id)
        connection, since = ("unknown", None) if node is None else (node.status, node.since)
        found[name] = {
            "public_key": site.public_key,
            "connection": connection,
            "since": since,
            "last_error": lost.get(name),
        }
    return found


def _last_losses(folder: ServerFolder) -> dict[str, str]:
    """By site, why the last attempt that lost it did: a refusal by its code, or silence."""
    events, _ = folder.progress.read(0)
    return {
        site: f"attempt {event.attempt}, {event.exchange}: {reason}"
        for event in events
        if isinstance(event, ExchangeClosed)
        for site, reason in event.lost.items()
    }


def _last_error(folder: ServerFolder) -> str | None:
    """What ended the last run, unless another has begun since."""
    events, _ = folder.progress.read(folder.progress.last_run())
    return next((event.what for event in events if isinstance(event, Stopped)), None)
