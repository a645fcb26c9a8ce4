"""That each round's adapter is what its sum made of the one before: every step again, or who took it and signed."""

from collections.abc import Iterator
from typing import Final

from ...common.ledger.replay import VerifiedLedger
from ...common.ledger.steps import check_state, stepped
from ...common.model.adapter import vector_from_bytes
from ...common.study.artefacts import FIRST_ADAPTER, SUMS, sum_path
from ...common.study.step import Trained
from ...server.report.claim import count
from .case import Case, Claim, OpenError
from .verdict import Outcome


def _stepped(case: Case) -> str:
    verified = case.verified
    if not verified.rounds:
        return "no round was closed: it is the first adapter"
    rounds = count(len(verified.rounds), "round")
    if _taken_again(case, verified):
        return f"{rounds} taken again from {SUMS}/, each to the same bits"
    # A round's attempt has t adverts at least, each by a site that came to the adapter before it by itself, within
    # H(Begin); the adapter after the last round is in what sites sign at the end.
    signed, threshold = len(verified.closing_signatures), verified.manifest.threshold
    last = verified.rounds[-1].round
    if signed < threshold:
        raise OpenError(
            f"{SUMS}/ does not have every round's sum, and {signed} sites of at least {threshold} have signed what "
            f"came of round {last}",
            Outcome.UNFINISHED,
        )
    return (
        f"{SUMS}/ does not have every round's sum: that rests on signatures of at least {threshold} sites, each of "
        f"which took the steps by itself: of rounds before {last} as the next one began, of round {last} at the end"
    )


def _taken_again(case: Case, verified: VerifiedLedger) -> bool:
    """Whether all was there that is needed; raises LedgerError where what came of it is not what the ledger has."""
    first = case.evidence.sum_file(FIRST_ADAPTER)
    if first is None:
        return False
    trained = Trained(adapter=vector_from_bytes(first, dimension=verified.manifest.dimension))
    check_state(verified, 0, trained)
    for round_, total in enumerate(_sums(case, verified), start=1):
        if total is None:
            return False
        trained = stepped(verified, round_, trained, total)
    return True


def _sums(case: Case, verified: VerifiedLedger) -> Iterator[bytes | None]:
    return (case.evidence.sum_file(sum_path(closed.round)) for closed in verified.rounds)


STEP_CLAIM: Final = Claim(
    name="steps",
    claim="Each round's adapter is what its sum made of the one before",
    recomputed_from=f"{SUMS}/ and the ledger, or signatures",
    check=_stepped,
)
