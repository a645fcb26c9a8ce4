"""That an attached audit is of this study's parameters, that its bounds follow from its scores, and what they mean."""

from typing import Final

from ...common.audit.evidence import AuditEvidence
from ...common.audit.named import name_of
from ...common.study.artefacts import AUDIT, REPORT
from ...server.report.audit import Audited
from .case import AbsentError, Case, Claim, DisagreesError, OpenError


def _audited(case: Case) -> str:
    """Of a study without an audit it says how one is made.

    One that the manifest does not name is none of the files that a study leaves at its sites: what a report states of
    it stays open there.
    """
    stated, manifest = case.found("audit"), case.verified.manifest
    named = manifest.study.about.audit
    if AUDIT not in case.evidence.files and AUDIT not in case.evidence.faults:
        if named is not None:
            raise OpenError(
                f"the manifest names an audit, and {AUDIT}, which its server and its sites hold, is not here"
            )
        if stated is not None:
            raise OpenError(f"the report states an audit, and {AUDIT}, which its server holds, is not here")
        raise AbsentError(
            "none is attached: `grandrounds audit DIR --attach DIR` makes one, of a twin with planted records"
        )
    data = case.read(AUDIT)
    evidence, found = AuditEvidence.parse(data), Audited.of(data)
    if stated not in (None, found.stated):
        raise DisagreesError(f"{AUDIT} is not the audit that the report states")
    if named not in (None, name_of(data)):
        raise DisagreesError(f"{AUDIT} is not the audit that the manifest names")
    if named is not None and stated is None and REPORT in case.evidence.files:
        raise DisagreesError("the report does not state the audit that the manifest names")
    evidence.require_of(manifest)
    evidence.require_bounds()
    if evidence.headline.epsilon > evidence.claimed:
        raise DisagreesError(found.in_words)
    return found.in_words


AUDIT_CLAIM: Final = Claim(
    name="audit",
    claim="No audit that is attached found more than is claimed, and its scores bear out what it found",
    recomputed_from=f"{AUDIT} and the manifest",
    check=_audited,
)
