"""What came of a study, at a site: its folder, verified there, and its adapter on records that nothing trained on."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ...client.site.assembly import open_model
from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...client.site.results import write_results
from ...client.site.site_records import read_beside
from ...client.state.database import SiteDatabase
from ...client.state.site_state import SiteState
from ...common.data.records import count_records
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError, StorageError, StudyError
from ...common.model.base_folder import published_name
from ...common.model.language_model import LanguageModel
from ...common.sources.identifiers import Similar, canonical
from ...common.study.artefacts import AUDIT, LEDGER
from ...common.system.files import write_atomically
from ...server.report.claim import count
from ...server.report.rounding import number
from ...server.report.utility import AtPosition, verdict
from ..verify.adapter_claims import adapter_vector
from ..verify.case import Case, replay
from ..verify.claims import verdict_on
from ..verify.evidence import Evidence, read_evidence
from ..verify.verdict import Status, Verdict


def fetch(folder: SiteFolder, study: JoinedStudy, *, output: Path | None) -> Iterator[str]:
    """Verify what the finished study left here, and copy it to ``output`` if one is given; what was found, in lines.

    May be repeated, and the worker may run meanwhile. The last line is the adapter's perplexity on the records that
    site.toml names as ``held_out``, which is neither kept nor sent. Raises StudyError where the study is not over or a
    claim does not hold, StorageError, DataError and ModelError.
    """
    manifest, kept = study.manifest(), study.results
    write_atomically(kept / LEDGER, _ledger_of_closed(folder, study))
    audit = study.audit(manifest)
    if audit is not None:
        write_atomically(kept / AUDIT, audit)  # which came with the study, and not with its end
    case = Case(evidence=read_evidence(kept), manifest_hash=manifest.sha256)  # read once: what is copied was verified
    yield from _said(verdict_on(case))
    if output is not None:
        _copy(case.evidence, output)
    place = output or kept
    yield f"the adapter is in {place / 'adapter'}, and the study's page is {place / 'report.html'}"
    described = manifest.study.model
    yield (
        f"it was trained on {published_name(described.name)} in {described.precision}; "
        f"{place / 'adapter' / 'README.md'} has the lines that load both"
    )
    yield from _evaluated(folder, study, case)


def _ledger_of_closed(folder: SiteFolder, study: JoinedStudy) -> bytes:
    """The site's copy of the ledger. Raises StudyError where it has no end, and StorageError where results are gone."""
    manifest, kept = study.manifest(), study.results
    database = SiteDatabase.open_existing(folder.state)
    try:
        ledger = b"".join(line + b"\n" for line in SiteState(database).ledger(manifest.study_id))
    finally:
        database.close()
    verified = replay(ledger).verified
    if verified is not None and verified.closed is None:  # one that is not whole is for ``verify`` to explain
        raise StudyError(
            "the study is not over for this site: its end did not reach it, or could not be kept",
            why="what the study leaves comes with its end, which the site checks, keeps and signs",
            fix="leave `grandrounds client start` running; a site that missed the end is asked again by the next "
            "`grandrounds server run`",
        )
    if not kept.is_dir():
        raise StorageError(
            f"{kept} is gone",
            why="this site had kept there what the study left, and has signed its end",
            fix="have another site or the server's operator send its folder of the study, and run: "
            f"grandrounds verify FOLDER --manifest-hash {manifest.sha256}",
        )
    return ledger


def _said(verdict: Verdict) -> Iterator[str]:
    """What is open, and that the rest agrees. Raises StudyError where something does not."""
    wrong = [finding for finding in verdict.findings if finding.status is Status.DISAGREES]
    if wrong:
        raise StudyError(
            f"the study does not hold: {'; '.join(f'{finding.claim}: {finding.detail}' for finding in wrong)}",
            why="an adapter whose claim does not hold may reveal more of this site's patients than was agreed",
            fix="do not use it; keep the site's folder as it is, and compare with what the other sites hold",
        )
    agree = sum(finding.status is Status.AGREES for finding in verdict.findings)
    there = sum(finding.status is not Status.ABSENT for finding in verdict.findings)
    yield f"{agree} of {there} claims were recomputed from what this site holds, and agree"
    for finding in verdict.findings:
        if finding.status is Status.NOTHING:
            yield f"{finding.claim}: {finding.detail}"
        if finding.status is Status.OPEN:
            yield f"cannot be established here: {finding.claim}: {finding.detail}"
    if any(finding.status is Status.OPEN for finding in verdict.findings):
        yield "the server's operator can send its folder of the study, which has every signature, to be verified"


def _copy(evidence: Evidence, output: Path) -> None:
    if not output.exists() or read_evidence(output) != evidence:
        write_results(output, evidence.files)


def _evaluated(folder: SiteFolder, study: JoinedStudy, case: Case) -> Iterator[str]:
    settings = folder.settings()
    if settings.held_out is None:
        yield "nothing was evaluated here: site.toml names no records that are held out (held_out)"
        return
    similar = settings.similar_identifiers
    records = read_beside(folder, settings.held_out)  # minimised: measured on what the adapter was trained on
    held_out = (one for record in records for one in (record.patient_id, *record.other_ids))
    check_apart(held_out, count_records(settings.data, similar).identifiers, similar)
    model = model_at_site(folder, study)
    tokenisation = Tokenisation.load(str(settings.model), vocabulary_size=model.vocabulary_size)
    examples = tokenisation.evaluation_set(records, positions=model.positions).examples
    before = model.perplexity(examples, model.get_adapter())  # which changes nothing yet: its B is zero
    after = model.perplexity(examples, adapter_vector(case, trained=True))
    judged = verdict(before.whole, after.whole, AtPosition.all_of(before, after))
    yield (
        f"perplexity on the {count(len(records), 'record')} held out: {number(before.whole)} of the base model, "
        f"{number(after.whole)} with the adapter. {judged} Nobody else was told, and neither was this site's log"
    )


def model_at_site(folder: SiteFolder, study: JoinedStudy) -> LanguageModel:
    """The study's model, on one device or, where no device is said to hold the base, on processors."""
    settings = folder.settings()
    one = settings if settings.shard == "on" else settings.model_copy(update={"devices": settings.devices[:1]})
    return open_model(one, study.manifest(), identity=folder.identity(), frozen_adapter=study.frozen_adapter())


def check_apart(held_out: Iterable[str], trained: Iterable[str], similar: Similar | None) -> None:
    """Raises DataError where a patient is in both, in whatever spelling unless these are ``different``.

    Both are all identifiers that patients are known by.
    """
    form = str if similar == "different" else canonical
    if not set(map(form, held_out)).isdisjoint(map(form, trained)):
        raise DataError(
            "patients of the records that are held out have records in the training data, too",
            why="the adapter may have learnt from them, and would look better than it is",
            fix="hold out all records of a patient or none (data and held_out in site.toml)",
        )
