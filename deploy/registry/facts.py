"""A finished study as a release: every claim of it recomputed first, from its folder alone."""

from typing import Any

from ...common.crypto.identity import sha256
from ...common.errors import StudyError
from ...common.study.artefacts import ATTACKS, AUDIT, LEDGER, results
from ...server.report.attacks import Attacked
from ...server.report.report import Declared
from ..verify.adapter_claims import last_adapter
from ..verify.case import Case
from ..verify.established import require_established
from ..verify.verdict import Status
from .entries import Facts


def require_verified(case: Case, *, without_privacy: bool) -> tuple[str, ...]:
    """The names of the claims that stay open, of those that may.

    Raises StudyError where any other does not hold, or nobody vouched for the manifest; and OtherProgramError where
    none is false, but only another version of this program can confirm it.
    """
    findings = require_established(
        case, what="the study", why="a release is what others rely on, and what is claimed of it has to be borne out"
    ).findings
    if case.manifest_hash is None:
        raise StudyError(
            f"whose study this is, nobody vouched for: its manifest's SHA-256 is {case.verified.manifest.sha256}",
            why="anybody can make a study that is whole, with keys of their own",
            fix="ask a site for the hash of its manifest, and give it with --manifest-hash",
        )
    if not without_privacy and any(finding.status is Status.NOTHING for finding in findings):
        raise StudyError(
            "the study ran without noise, and claims no privacy",
            why="its adapter may say what stands in a patient's records, and nothing bounds how much",
            fix="release none of it; or, if its records are nobody's, say so with --without-privacy",
        )
    return tuple(finding.name for finding in findings if finding.status is Status.OPEN)


def facts_of(case: Case) -> Facts:
    """What the release's entry says of it, of a study that was verified."""
    manifest, report = case.verified.manifest, case.report
    declared = Declared.of(report)
    groups, attacks = declared.groups, None
    if ATTACKS in case.evidence.files:  # whose scores bear them out; what a report alone states of them, nothing does
        attacks = Attacked.of(case.read(ATTACKS), manifest, adapter_sha256=last_adapter(case.verified)[0])
    # Audit and attacks stand in the report by their hashes, and are no part of what the study was closed with.
    paths = (LEDGER, *results(manifest.study.model.adapter), *({AUDIT, ATTACKS} & case.evidence.files.keys()))
    private: dict[str, Any] = {name: report[name] for name in ("epsilon", "delta")}
    return Facts(
        study_id=manifest.study_id,
        manifest_sha256=manifest.sha256,
        title=manifest.study.about.title,
        setting=report["setting"],
        base_model=report["base_model"],
        base_sha256=manifest.model_sha256,
        privacy_unit=manifest.study.privacy.unit,
        sites_per_patient=manifest.study.privacy.sites_per_patient,
        **private,
        evaluation=report["utility"]["evaluation"],
        perplexity_before=report["perplexity_before"],
        perplexity_after=report["perplexity_after"],
        gain=groups[0].gain if groups else None,
        attacks=None if attacks is None else attacks.findings,
        files={path: sha256(case.read(path)) for path in paths},
    )
