"""``grandrounds verify``: recompute every claim of a study from its folder alone."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..verify.claims import Verdict


def verify(
    folder: Annotated[Path, typer.Argument(help="A study's folder, of which nothing is trusted.", metavar="DIR")],
    manifest_hash: Annotated[
        str | None, typer.Option(help="The manifest's SHA-256, as somebody you trust tells it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recompute every claim of a finished or running study: offline, from DIR alone. Exit code 1 if one is wrong."""
    from ..verify.claims import verify

    verdict = verify(folder, manifest_hash=manifest_hash)
    if as_json:
        typer.echo(json.dumps({"holds": verdict.holds, "findings": [asdict(finding) for finding in verdict.findings]}))
    else:
        _print(verdict)
    if not verdict.holds:
        raise typer.Exit(1)


def _print(verdict: "Verdict") -> None:
    """Two lines for each claim, which no width breaks: they hold what people copy."""
    from rich.console import Console
    from rich.text import Text

    from ..verify.claims import Status

    looks = {
        Status.AGREES: ("✓ agrees", "green"),
        Status.DISAGREES: ("✗ DOES NOT AGREE", "bold red"),
        Status.OPEN: ("– cannot be established", "yellow"),
    }
    console = Console(highlight=False, soft_wrap=True)
    for finding in verdict.findings:
        mark, style = looks[finding.status]
        console.print(Text(f"{mark}: ", style=style).append(finding.claim, style="bold"))
        console.print(Text(f"  from {finding.recomputed_from}: ", style="dim").append(finding.detail, style="not dim"))
    counts = Counter(finding.status for finding in verdict.findings)
    console.print()
    console.print(
        f"Of {len(verdict.findings)} claims {counts[Status.AGREES]} agree, {counts[Status.DISAGREES]} do not, and "
        f"{counts[Status.OPEN]} cannot be established.",
        style="bold" if verdict.holds else "bold red",
    )
