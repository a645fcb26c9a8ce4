"""``grandrounds verify``: recompute every claim of a study from its folder alone."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..verify.verdict import Outcome

if TYPE_CHECKING:
    from ..verify.verdict import Verdict


def verify(
    folder: Annotated[Path, typer.Argument(help="A study's folder, of which nothing is trusted.", metavar="DIR")],
    manifest_hash: Annotated[
        str | None, typer.Option(help="The manifest's SHA-256, as somebody you trust tells it.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLAIM",
            help="A claim that must be established, instead of all of them; may be repeated. No other may be false. "
            "--json has the names of all.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recompute every claim of a study, finished or running: offline, from DIR alone. Exit codes:"""
    from ..verify.claims import CLAIMS, verify
    from ..views.console import steps

    names = [claim.name for claim in CLAIMS]
    if unknown := set(require or ()) - set(names):
        # No error of ours, whose exit code says here that a claim is false.
        raise typer.BadParameter(
            f"--require {', '.join(sorted(unknown))}: no claim has that name, and none is held to it; choose among "
            f"{', '.join(names)}"
        )
    with steps() as step:
        step(f"recomputing every claim of {folder}")
        verdict = verify(folder, manifest_hash=manifest_hash)
    outcome = verdict.outcome_of(require) if require else verdict.outcome
    if as_json:
        findings = [
            {
                "name": finding.name,
                "claim": finding.claim,
                "recomputed_from": finding.recomputed_from,
                "status": finding.status,
                "detail": finding.detail,
            }
            for finding in verdict.findings
        ]
        typer.echo(json.dumps({"outcome": outcome.name.lower(), "holds": verdict.holds, "findings": findings}))
    else:
        _print(verdict, outcome)
    raise typer.Exit(outcome)


verify.__doc__ = "\n\n".join(
    [f"{verify.__doc__}", *(f"{outcome.value}: {outcome.said}." for outcome in Outcome), "2: the command is wrong."]
)


def _print(verdict: "Verdict", outcome: Outcome) -> None:
    """Two lines for each claim, which no width breaks: they hold what people copy."""
    from rich.text import Text

    from ..verify.verdict import Status
    from ..views.console import plain_console

    looks = {
        Status.AGREES: ("✓ agrees", "green"),
        Status.DISAGREES: ("✗ DOES NOT AGREE", "bold red"),
        Status.OPEN: ("– cannot be established", "yellow"),
        Status.NOTHING: ("✗ NOTHING IS CLAIMED", "bold red"),
        Status.ABSENT: ("– there is none", "dim"),
    }
    console = plain_console(highlight=False, soft_wrap=True)
    for finding in verdict.findings:
        mark, style = looks[finding.status]
        console.print(Text(f"{mark}: ", style=style).append(finding.claim, style="bold"))
        console.print(Text(f"  from {finding.recomputed_from}: ", style="dim").append(finding.detail, style="not dim"))
    counts = Counter(finding.status for finding in verdict.findings)
    wrong = counts[Status.DISAGREES]
    nothing = ", and one is not claimed at all" if counts[Status.NOTHING] else ""
    absent = f", of {counts[Status.ABSENT]} there is nothing to check" if counts[Status.ABSENT] else ""
    console.print()
    console.print(
        f"Of {len(verdict.findings)} claims {counts[Status.AGREES]} agree, "
        f"{wrong} {'does' if wrong == 1 else 'do'} not, and {counts[Status.OPEN]} cannot be established"
        f"{absent}{nothing}.",
    )
    sentence = outcome.said[0].upper() + outcome.said[1:]
    console.print(
        f"{sentence} (exit code {outcome.value}).", style="bold" if outcome is Outcome.ESTABLISHED else "bold red"
    )
