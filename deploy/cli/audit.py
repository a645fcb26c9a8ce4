"""``grandrounds audit``: what can be seen of planted canaries, held against a study's claim."""

from pathlib import Path
from typing import Annotated

import typer


def audit(
    study: Annotated[
        Path, typer.Argument(help="A study's folder, its study.json, or a study.toml; of records none is read.")
    ],
    canaries: Annotated[
        int, typer.Option(min=20, max=50_000, help="Planted canaries: the more, the nearer a bound can come to ε.")
    ] = 1000,
    text_canaries: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Made-up notes among synthetic patients, which two trainings take."),
    ] = 0,
    synthetic_notes: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="Notes that each twin's adapter writes: text canaries are looked for in these alone, too.",
        ),
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the evidence here (default: nowhere).")] = None,
    attach: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put the evidence beside the report in a study's folder, as audit.json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evidence, and nothing else.")] = False,
) -> None:
    """Audit a study: run a twin of it with planted canaries, and bound ε from below by what can be seen of them.

    The twin has the study's parameters, protocol, arithmetic and noise, and none of its patients. It is run once more
    with each of several faults, so that the bound stands beside what it would have been. The exit code is 1 where the
    claim is refuted.
    """
    from ...common.study.artefacts import AUDIT
    from ...common.system.files import write_atomically
    from ..audit.subject import read_subject, require_alike, require_auditable, require_one_size, signed_in
    from ..views.audit import print_audit
    from ..views.console import plain_console, steps

    places = [place for place in (output, None if attach is None else attach / AUDIT) if place is not None]
    for place in places:
        require_free(place)
    subject, other = read_subject(study), None if attach is None else signed_in(attach)
    require_auditable(subject.study, text_canaries=text_canaries, synthetic_notes=synthetic_notes)
    with steps() as step:
        step("loading PyTorch")
        from ..audit.audit import audited

        subject = subject.completed(step)
        if attach is not None and other is not None:
            require_alike(subject.study, other.study, place=attach)
        manifest = subject.manifest(step)
        if attach is not None and other is not None:
            require_one_size(manifest, other, place=attach)
        evidence = audited(
            manifest,
            canaries=canaries,
            text_canaries=text_canaries,
            synthetic_notes=synthetic_notes,
            tell=step,
        )
    for place in places:
        write_atomically(place, evidence.to_json())
    if as_json:
        typer.echo(evidence.to_json().decode(), nl=False)
    else:
        print_audit(plain_console(highlight=False), evidence, places)
    if evidence.headline.epsilon > evidence.claimed:
        raise typer.Exit(1)


def require_free(place: Path) -> None:
    """Raises StorageError where evidence is at this place."""
    from ...common.errors import StorageError

    if place.exists():
        raise StorageError(
            f"{place} exists",
            why="evidence is never overwritten: whoever audits until a bound pleases has no evidence",
            fix="move it away, and say why, or choose another place",
        )
