"""``grandrounds generate``: synthetic notes from a finished adapter, and how near they come to a site's records."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from .terminal import say

ComputedIn = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="In what the model computes; without: as it was trained. bfloat16 is quicker on newer CPUs."),
]

Guidance = Annotated[
    float, typer.Option(min=1, max=20, help="Above 1, notes follow their prompts more closely, in twice the time.")
]


def generate(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", help="A study's folder, or an adapter's alone; with --check, notes.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="What to write: notes as .jsonl or .parquet; with --check, a page.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What notes begin with (.toml .jsonl); without, for the built-in patients."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10**7, help="Notes.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="The most tokens behind a prompt.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.05, max=5, help="Lower: likelier words; higher: rarer ones.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Probability of the tokens that are drawn from.")
    ] = 0.95,
    guidance: Guidance = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same gives the same notes.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Notes at a time.")] = 64,
    precision: ComputedIn = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder or hub name of the base model, if it is not where the study has it."
        ),
    ] = None,
    manifest_hash: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="The SHA-256 of the study's manifest, as somebody you trust tells it."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.")] = "cpu",
    check: Annotated[
        Path | None,
        typer.Option(metavar="RECORDS", help="Compare notes with a site's records: a file, folder, glob or TOML file."),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="RECORDS", help="With --check: records that nobody trained on.")
    ] = None,
) -> None:
    """Write synthetic notes, which carry the study's claim; or, at a site, see how near they come to its records.

    Notes are post-processing of the adapter, and cost no privacy. A stopped command goes on when it is repeated.
    """
    if check is not None:
        _check(place, output, check, held_out)
        return
    say([f"the adapter in {place} is read, and held against its study"])
    from ..adapter.finished import FinishedAdapter
    from ..generate.generation import Generation
    from ..generate.notes_file import about_path
    from ..generate.prompts import Prompts
    from ..generate.sampling import Sampling
    from ..views.console import counted

    source = Prompts.builtin() if prompts is None else Prompts.read(prompts)
    found = FinishedAdapter.read(place, manifest_hash=manifest_hash)
    say([f"it is {found.origin}"])
    sampling = Sampling(
        count=count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        seed=seed,
        batch=batch,
        precision=precision,
    )
    generation = Generation(
        adapter=found, base=found.base_folder(base), prompts=source, sampling=sampling, device=device
    )
    with counted("notes", count) as told:
        described = generation.run(output, told)
    say(
        [
            described["privacy"],
            f"{output} has {count:,} notes, each of which says whose claim it carries, and {about_path(output)} all of "
            "what they follow from",
        ]
    )


def _check(notes: Path, page: Path, records: Path, held_out: Path | None) -> None:
    from ...common.errors import StudyError
    from ...common.system.files import write_atomically
    from ..adapter.output import require_absent
    from ..generate.check import check
    from ..generate.check_page import lines, render
    from ..site_ops.site_data import SiteData
    from ..views.console import steps

    require_absent(page)
    given = SiteData.given(records)
    unseen = given.held_out if held_out is None else SiteData.given(held_out).data
    if unseen is None:
        raise StudyError(
            "no records are held out",
            why="how near synthetic notes are is told by how near notes are that nobody trained on",
            fix="name them with --held-out, or as held_out in a TOML file beside data, which --check may name",
        )
    with steps() as step:
        found = check(notes, given.data, unseen, tell=step)
    write_atomically(page, render(found, written=datetime.now(UTC)).encode(), mode=0o600)
    say([*lines(found), f"{page} has the figures, for its owner's eyes alone (0600)"])
