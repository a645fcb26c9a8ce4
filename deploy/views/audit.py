"""How an audit is shown: what was claimed, what was found, and what would have been found of faults."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...common.audit.evidence import CLAIMED, AuditEvidence
from ...server.report.audit import OF_NOTES, planted
from ...server.report.rounding import down


def print_audit(console: Console, evidence: AuditEvidence, written: Sequence[Path]) -> None:
    """Print the claim, each method's bound, the faults with theirs, and what that means."""
    claimed, found = evidence.claimed, evidence.headline
    for run in evidence.canaries:
        if run.protection != CLAIMED:
            continue
        console.print(
            f"{planted(run.kind, len(run.scores), evidence.synthetic_notes)}, {sum(run.bits)} of them in the twin; "
            f"ε claimed {claimed:g} at δ = {evidence.parameters.delta:g}",
            soft_wrap=True,
        )
        table = Table("the twin", "ε is at least", "")
        for bound in (bound for bound in evidence.bounds if bound.kind == run.kind):
            if bound.is_chosen:
                is_above = bound.epsilon > claimed
                said = (
                    "above the claim"
                    if is_above
                    else ("within the claim" if bound.protection == CLAIMED else "not seen")
                )
                table.add_row(bound.protection, down(bound.epsilon, 2), said)
        console.print(table)
        others = [
            f"{down(bound.epsilon, 2)} ({bound.method})"
            for bound in evidence.bounds
            if (bound.kind, bound.protection) == (run.kind, CLAIMED) and not bound.is_chosen
        ]
        chosen = evidence.chosen(run.kind)
        if chosen is not None:
            console.print(
                f"By the method {chosen.method}, chosen beforehand, with a confidence of {evidence.confidence:g}; by "
                f"others that assume less: {', '.join(others)}.",
                soft_wrap=True,
            )
    console.print()
    if found.epsilon > claimed:
        console.print(
            f"THE CLAIM IS REFUTED: ε is at least {down(found.epsilon, 2)}, and {claimed:g} is claimed. Do not run "
            "this study; audit once more to rule out the one run in twenty that errs, and report it.",
            style="bold red",
            soft_wrap=True,
        )
    else:
        console.print(
            f"Nothing was found that refutes the claim: what could be seen of canaries shows an ε of at least "
            f"{down(found.epsilon, 2)}, and {claimed:g} is claimed. An audit bounds a leak from below alone: a fault "
            "that is not seen above would pass as well; with more canaries an audit sees more.",
            soft_wrap=True,
        )
    if evidence.synthetic_notes is not None:
        console.print(OF_NOTES, soft_wrap=True)
    for place in written:
        console.print(f"Written to {place}.", soft_wrap=True)
