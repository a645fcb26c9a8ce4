"""That a study's whole claim is established, for whatever hands it on to people who cannot see the study."""

from typing import Final

from ...common.errors import OtherProgramError, StudyError
from .case import Case
from .claims import verdict_on
from .verdict import Outcome, Status, Verdict

# Another version of this program ran the study, whose report that still writes the same; an audit and attacks that the
# report states lie with the study's server alone.
_MAY_BE_OPEN: Final = frozenset({"program", "audit", "attacks"})


def require_established(case: Case, *, what: str, why: str) -> Verdict:
    """What was found of every claim, where all hold but for those that may stay open.

    Whose study it is stays open where nobody vouched for its manifest, which is the caller's to refuse or to say.
    Raises StudyError, in words of ``what`` is not shown and ``why`` it has to be, where any other does not hold; and
    OtherProgramError where none is false, but only another version of this program can confirm it.
    """
    verdict = verdict_on(case)
    if verdict.holds:
        case.check_form()
    open_ = {finding.name for finding in verdict.findings if finding.status is Status.OPEN}
    wrong = open_ - _MAY_BE_OPEN - ({"authorship"} if case.manifest_hash is None else set())
    for finding in sorted(verdict.findings, key=lambda one: one.status is not Status.DISAGREES):
        if finding.status is Status.DISAGREES or finding.name in wrong:
            by_another = finding.outcome is Outcome.UNKNOWN and "program" in open_
            raise (OtherProgramError if by_another else StudyError)(
                f"{what} {'cannot be confirmed here' if by_another else 'is not shown'}. {finding.claim}: "
                f"{finding.detail}",
                why=why,
                fix="use the version that the study ran"
                if by_another
                else "get the study's folder anew, whole and ended; `grandrounds verify` has all claims",
            )
    return verdict
