"""Recomputes every claim of a study from its folder alone: no network, no model, nothing that is taken on trust.

What is found holds provided that honest sites ran the pinned code (ARCHITECTURE.md, "What is not claimed"). A claim
that can neither be confirmed nor refuted is said to be open: it makes the rest no less true, and the whole no more.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from ...common.crypto.identity import sha256, shown_key
from ...common.errors import GrandRoundsError, OtherProgramError
from ...common.ledger import entries
from ...common.ledger.chain import EntryType, UnknownFormError
from ...common.printable import printable
from ...common.privacy.composition import least_epsilon, recomputed_epsilon
from ...common.privacy.events import Schedule
from ...common.schema import known
from ...common.study.artefacts import CARD, CORE, LEDGER, MANIFEST, PAGE, REPORT, results
from ...common.system.code_pin import is_running, running
from ...server.report.claim import NO_PRIVACY, count
from ...server.report.page import render_html, render_model_card
from ...server.report.report import Report
from ...server.report.rounding import up
from .adapter_claims import ADAPTER_CLAIMS
from .attacks_claim import ATTACKS_CLAIM
from .audit_claim import AUDIT_CLAIM
from .case import INCOMPLETE, AbsentError, Case, Claim, DisagreesError, NothingClaimedError, OpenError, replay
from .evidence import read_evidence
from .step_claim import STEP_CLAIM
from .unread import unread_authorship, unread_files, unread_ledger, unread_manifest
from .verdict import Finding, Outcome, Status, Verdict

EPSILON_TOLERANCE: Final = 1e-3  # of epsilon, within which two ways of computing it agree
_SMALL: Final = 1e-2  # below it the tolerance is one of this
_LONGEST: Final = 10_000  # characters of a detail: the keys of a hundred sites


def verify(folder: Path | str, manifest_hash: str | None = None) -> Verdict:
    """Recompute every claim of the study in ``folder``, of which nothing is trusted: offline, and without its model.

    Args:
        folder: what a study left, finished or running.
        manifest_hash: the manifest's SHA-256, as somebody else vouches for it; without one, whose study this is stays
            open.

    Returns:
        A finding for every claim, whatever the folder holds; ``outcome`` says what became of the whole claim.

    Raises:
        StorageError: it is no folder that can be read.

    >>> import tempfile
    >>> from grandrounds import Study, simulate
    >>> notes = [{"patient_id": number, "text": "no complaints"} for number in range(20)]
    >>> data, held_out = {"evaluation": "synthetic"}, [{"patient_id": "nobody", "text": "well rested"}]
    >>> sites = [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")]
    >>> fields = {"model": {"name": "tiny"}, "data": data, "training": {"rounds": 1}, "sites": sites}
    >>> study = Study.model_validate(fields)
    >>> cohorts = {site.name: notes for site in study.sites}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = simulate(study, cohorts, evaluation=held_out, output=folder)
    ...     verdict = verify(folder, result.manifest.sha256)
    >>> verdict.outcome.name, sorted({finding.status.value for finding in verdict.findings})
    ('ESTABLISHED', ['agrees', 'there is none'])
    """
    return verdict_on(Case(evidence=read_evidence(Path(folder)), manifest_hash=manifest_hash))


def verdict_on(case: Case, *names: str) -> Verdict:
    """What becomes of every claim, or of those of these ``names`` alone, by evidence that was read."""
    return Verdict(findings=tuple(_judge(claim, case) for claim in CLAIMS if not names or claim.name in names))


def _judge(claim: Claim, case: Case) -> Finding:
    outcome = Outcome.FALSE
    try:
        status, outcome, detail = Status.AGREES, Outcome.ESTABLISHED, _checked(claim, case)
    except OpenError as error:
        status, outcome, detail = Status.OPEN, error.outcome, str(error)
    except AbsentError as error:
        status, outcome, detail = Status.ABSENT, Outcome.UNKNOWN, str(error)
    except NothingClaimedError as error:
        status, outcome, detail = Status.NOTHING, Outcome.NO_PRIVACY, str(error)
    except DisagreesError as error:
        status, detail = Status.DISAGREES, str(error)
    except GrandRoundsError as error:
        status, detail = Status.DISAGREES, error.what
    except Exception as error:  # a folder that this program cannot digest is not confirmed by it
        status, detail = Status.DISAGREES, f"it could not be checked: {type(error).__name__}"
    return Finding(
        name=claim.name,
        claim=claim.claim,
        recomputed_from=claim.recomputed_from,
        status=status,
        outcome=outcome,
        detail=_shown(detail),
    )


def _checked(claim: Claim, case: Case) -> str:
    try:
        return claim.check(case)
    except OtherProgramError as error:
        holds = claim.check_unread(case)
        raise OpenError(f"{holds}{holds and '; but '}{error.what}: {error.fix}") from error


def _shown(text: str) -> str:
    """What a terminal can be shown: names of files and fields may be anything, of any length."""
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def _ledger(case: Case) -> str:
    replayed = replay(case.read(LEDGER))
    case.check_form()
    if replayed.fault:
        raise DisagreesError(replayed.fault)
    if replayed.incomplete:
        raise DisagreesError(INCOMPLETE)
    ledger = case.verified.ledger
    return f"{len(ledger)} entries; head {ledger.head}"


def _software(case: Case) -> str:
    manifest = case.verified.manifest
    ran = f"grandrounds {manifest.package_version}, its files' SHA-256 {manifest.package_sha256}"
    if not is_running(manifest.package_version, manifest.package_sha256):
        raise OpenError(f"the study ran {ran}, and this is {running()}: if something differs, install that and retry")
    return ran


def _manifest(case: Case) -> str:
    manifest = case.verified.manifest
    if case.read(MANIFEST) != manifest.canonical:
        raise DisagreesError(f"{MANIFEST} is not the manifest in force, {manifest.sha256}")
    return f"version {manifest.version}, SHA-256 {manifest.sha256}"


def _authorship(case: Case) -> str:
    manifests = {manifest.sha256: manifest.version for manifest in case.verified.manifests}
    manifest = case.verified.manifest
    given = case.vouched
    if given is None:
        keys = "; ".join(
            f"{site} {shown_key(key)}" for site, key in {"server": manifest.server_key, **manifest.site_keys}.items()
        )
        raise OpenError(
            f"authorship is not established: ask a site for the hash of its manifest. This one is {manifest.sha256}; "
            f"the keys are {keys}",
            Outcome.UNVOUCHED,
        )
    if given not in manifests:
        raise DisagreesError(f"this study's manifest is {manifest.sha256}")
    if given != manifest.sha256 and not case.verified.agreed:
        raise OpenError(
            f"it is version {manifests[given]}, and the sites have not agreed to version {manifest.version}",
            Outcome.UNFINISHED,
        )
    if given != manifest.sha256:
        return f"it is version {manifests[given]}; every later one was signed by enough sites of the one before"
    return "it is the manifest in force"


def _countersigned(case: Case) -> str:
    verified = case.verified
    signed, everyone = len(verified.countersigned), len(verified.manifest.study.sites)
    if not verified.agreed:
        raise OpenError(
            f"not yet agreed to: {signed} of {everyone} sites have signed version {verified.manifest.version}",
            Outcome.UNFINISHED,
        )
    later = len(verified.manifests) - 1
    return f"{signed} of {everyone} sites" + (f"; so were {count(later, 'manifest')} before it" if later else "")


# The ledger's replay refuses an attempt beyond the schedule, a sum that too few sites saw, and a counter that fell:
# a ledger that is whole bears these claims out, and what is left is to say what it has.
def _attempts(case: Case) -> str:
    verified = case.verified
    begun = f"{len(verified.attempts)} of {verified.manifest.max_attempts} begun"
    return f"{begun}; {count(len(verified.rounds), 'round')} closed"


def _views(case: Case) -> str:
    ended = [entries.AttemptEnded.of(entry) for entry in case.verified.ledger if entry.type is EntryType.ATTEMPT_ENDED]
    views = [len(attempt.consistencies) for attempt in ended if attempt.unmasked]
    if not views:
        raise case.unfinished("no attempt was unmasked")
    return f"{count(len(views), 'attempt')}, each with at least {count(min(views), 'signature')}"


def _charges(case: Case) -> str:
    charges = case.verified.charges
    if not charges:
        raise case.unfinished("no site has told its counter")
    return ", ".join(f"{site} {charged}" for site, charged in charges.items())


def _epsilon(case: Case) -> str:
    manifest = case.verified.manifest
    schedule, delta = manifest.schedule, manifest.delta
    if schedule is None:
        if case.verified.closed is not None and any(epsilon is not None for _, epsilon in _stated(case, sites=1)):
            raise DisagreesError("a study without noise claims privacy")
        raise NothingClaimedError(NO_PRIVACY)
    target = known(manifest.study.privacy.target_epsilon)
    _require_borne_out(target, schedule, delta, what="the target that the sites signed")
    found = f"ε = {up(_recomputed(schedule, delta), 4)} at δ = {delta:g}"
    if case.verified.closed is None:
        return f"{found} for the whole schedule; no report claims it yet"
    for sites, stated in _stated(case, sites=schedule.event.sites_per_patient):
        shared = replace(schedule, event=replace(schedule.event, sites_per_patient=sites))
        if stated is not None:
            what = f"what is stated for someone at {count(sites, 'site')}"
            _require_borne_out(stated, shared, delta, what=what)
    return f"{found}, by another path than the report’s; so is every overlap that the report states"


def _stated(case: Case, *, sites: int) -> Iterator[tuple[int, float | None]]:
    """ε as the report states it: of the claim, at ``sites`` for each patient, and of each overlap."""
    report = case.report
    try:
        rows = [(sites, report["epsilon"])]
        rows += [(row["sites_per_patient"], row["epsilon"]) for row in report["overlap"] or ()]
    except (KeyError, TypeError) as error:
        raise DisagreesError("the report does not state it") from error
    for overlap, epsilon in rows:
        if type(overlap) is not int or type(epsilon) not in (float, type(None)):
            raise DisagreesError("the report states it in no figures")
        yield overlap, epsilon


@functools.cache
def _recomputed(schedule: Schedule, delta: float) -> float:
    return recomputed_epsilon(schedule, delta=delta)


@functools.cache
def _least(schedule: Schedule, delta: float) -> float:
    return least_epsilon(schedule, delta=delta)


def _require_borne_out(stated: float, schedule: Schedule, delta: float, *, what: str) -> None:
    """An upper bound that this program finds itself bears the claim out; nothing but a lower bound refutes it."""
    epsilon = _recomputed(schedule, delta)
    if stated >= epsilon - EPSILON_TOLERANCE * max(_SMALL, epsilon):
        return
    least = _least(schedule, delta)
    if stated < least:
        raise DisagreesError(f"ε = {stated:.6g} is {what}, and it is certainly above {least:.6g}")
    raise OpenError(f"ε = {stated:.6g} is {what}; recomputed, it is between {least:.6g} and {epsilon:.6g}")


def _report(case: Case) -> str:
    try:
        found = case.differences
    except UnknownFormError as error:
        raise case.otherwise(error.what) from error
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise case.otherwise(f"it differs in {', '.join(each.name for each in found[:10])}{more}", found)
    return "every field; what it declares of itself are all perplexities and the evaluation set"


def _rendered(path: str, render: Callable[[Report], str]) -> Callable[[Case], str]:
    def check(case: Case) -> str:
        there = case.result(path)
        if there != render(case.sound_report).encode():
            raise case.otherwise(f"{path} says something else")
        return "byte for byte"

    return check


def _files(case: Case) -> str:
    case.check_form()
    if case.evidence.strangers:
        raise DisagreesError(f"adapter/ holds what does not belong there: {', '.join(case.evidence.strangers)}")
    closed = case.verified.closed
    if closed is None:
        raise case.unfinished(case.still_open)
    others = {CORE} & (case.evidence.files.keys() | case.evidence.faults.keys())
    found = {path: sha256(case.read(path)) for path in {*results(case.verified.manifest.study.model.adapter), *others}}
    wrong = sorted(path for path in found.keys() | closed.files.keys() if found.get(path) != closed.files.get(path))
    if wrong:
        raise DisagreesError(f"not as the study was closed: {', '.join(wrong[:10])}")
    return f"{len(found)} files, and no other in adapter/"


def _closing(case: Case) -> str:
    verified = case.verified
    if verified.closed is None:
        raise case.unfinished(case.still_open)
    signed, threshold = len(verified.closing_signatures), verified.manifest.threshold
    if signed < threshold:
        raise OpenError(
            f"the server closed the study, and {signed} sites signed that, of at least {threshold}: "
            f"open since attempt {len(verified.attempts)}",
            Outcome.UNFINISHED,
        )
    return f"{signed} of {len(verified.manifest.study.sites)} sites; {threshold} are enough"


CLAIMS: Final = (
    Claim(
        name="ledger",
        claim="The ledger is whole: every entry chained and signed",
        recomputed_from=LEDGER,
        check=_ledger,
        check_unread=unread_ledger,
    ),
    Claim(
        name="program",
        claim="This program is the one that ran the study",
        recomputed_from="the manifest",
        check=_software,
    ),
    Claim(
        name="manifest",
        claim="The manifest is the one in the ledger",
        recomputed_from=f"{MANIFEST} and the ledger",
        check=_manifest,
        check_unread=unread_manifest,
    ),
    Claim(
        name="authorship",
        claim="It is the manifest that you know",
        recomputed_from="--manifest-hash",
        check=_authorship,
        check_unread=unread_authorship,
    ),
    Claim(name="agreement", claim="Every site agreed to it", recomputed_from="countersignatures", check=_countersigned),
    Claim(
        name="attempts",
        claim="Every attempt is counted, within the schedule",
        recomputed_from="the ledger",
        check=_attempts,
    ),
    Claim(
        name="views",
        claim="Enough sites saw the same of every sum that was unmasked",
        recomputed_from="their signed views",
        check=_views,
    ),
    Claim(
        name="charges",
        claim="No site's counter of charges fell or is behind what it signed",
        recomputed_from="adverts and masked inputs",
        check=_charges,
    ),
    Claim(
        name="privacy", claim="The privacy that is claimed", recomputed_from="the manifest's schedule", check=_epsilon
    ),
    Claim(
        name="report",
        claim="The report is what follows from the ledger",
        recomputed_from=f"{REPORT}, the ledger",
        check=_report,
    ),
    Claim(
        name="page",
        claim="The page says what the report says",
        recomputed_from=REPORT,
        check=_rendered(PAGE, render_html),
    ),
    Claim(
        name="card",
        claim="The model card says what the report says",
        recomputed_from=REPORT,
        check=_rendered(CARD, render_model_card),
    ),
    Claim(
        name="files",
        claim="The files are those with which the study was closed",
        recomputed_from="SHA-256",
        check=_files,
        check_unread=unread_files,
    ),
    *ADAPTER_CLAIMS,
    STEP_CLAIM,
    AUDIT_CLAIM,
    ATTACKS_CLAIM,
    Claim(
        name="end",
        claim="Enough sites signed the end of the ledger",
        recomputed_from="closing signatures",
        check=_closing,
    ),
)
