"""``grandrounds registry``: finished adapters as releases, by name and version, in a signed ledger of their own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import named
from .terminal import say

if TYPE_CHECKING:
    from ..registry.folder import RegistryFolder
    from ..registry.releases import Registry, Release

registry = typer.Typer(
    name="registry",
    help="Keep finished adapters as releases: versions, who received them, withdrawal, rollback, incidents, drift. No "
    "words that are given may be about a patient: they stand in a signed ledger for good.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The registry's folder.")]
Which = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A release; by name alone, the version in use.")]
Version = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A release.")]
Reason = Annotated[str, typer.Option(metavar="WORDS", help="Why, in one line.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@registry.command()
def init(
    folder: Folder,
    called: Annotated[str, typer.Option(metavar="WORDS", help="What people call the registry.")] = "adapters",
) -> None:
    """Begin a registry: its key, and the ledger that every other command appends to."""
    from ...common.crypto.identity import shown_key
    from ..registry.folder import RegistryFolder

    made = RegistryFolder.create(folder, called=called).read()
    say(
        [
            f"{made.called}: a registry in {folder}, whose key others compare:",
            f"  {shown_key(made.key)}",
            f"keep {folder}/key for whoever keeps the registry; all else may be copied",
            f"next: grandrounds registry add {folder} STUDY --name NAME --manifest-hash HASH",
        ]
    )


@registry.command()
def add(
    folder: Folder,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A finished study's folder, of which all is checked.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Under which its versions are counted: a-z, 0-9 and -.")],
    manifest_hash: Annotated[
        str | None, typer.Option(metavar="HASH", help="The manifest's SHA-256, as somebody you trust tells it.")
    ] = None,
    asset: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=NAME", help="What a site calls its patients, if it has several such sets."),
    ] = None,
    without_privacy: Annotated[bool, typer.Option(help="Take a study that ran without noise, too.")] = False,
) -> None:
    """Verify a finished study as `verify` does, keep a copy, and put its adapter in use as NAME's next version."""
    from ..views.console import steps

    place = _at(folder)
    with steps() as step:
        step(f"recomputing every claim of {study}")
        found = place.add(
            study,
            name=name,
            manifest_hash=manifest_hash,
            assets=named("--asset", asset or (), str),
            without_privacy=without_privacy,
        )
    from ..registry.lineage import Lineage
    from ..views.registry import lineage_lines, release_lines

    added = found.versions(name)[-1]
    say(
        [
            *release_lines(found, added),
            *lineage_lines(Lineage(folder=place, registry=found, release=added)),
            *_head(found),
        ]
    )


@registry.command(name="list")
def list_(folder: Folder, as_json: AsJson = False) -> None:
    """List all releases: state, base model, privacy, perplexity, and how many received them."""
    from ..views.registry import print_releases, release_figures

    found = _at(folder).read()
    if as_json:
        _json([release_figures(found, release) for release in found.releases.values()])
    else:
        print_releases(found)
        say(_not_compared(folder))


@registry.command()
def show(folder: Folder, release: Which, as_json: AsJson = False) -> None:
    """Show all that is known of a release: its study, privacy, who received it, what happened."""
    from ..registry.lineage import Lineage
    from ..views.registry import lineage_figures, lineage_lines, release_figures, release_lines

    place = _at(folder)
    found = place.read()
    chosen = found.find(release)
    lineage = Lineage(folder=place, registry=found, release=chosen)
    if as_json:
        _json({**release_figures(found, chosen), "lineage": lineage_figures(lineage)})
    else:
        say([*release_lines(found, chosen), *lineage_lines(lineage), *_not_compared(folder)])


@registry.command()
def log(folder: Folder, as_json: AsJson = False) -> None:
    """Print every entry of the ledger, the oldest first: what was done, when, by whom, and every incident."""
    from ..views.registry import log_lines

    found = _at(folder).read()
    if as_json:
        _json([{"type": note.type.value, **note.fields} for note in found.notes])
    else:
        say([*log_lines(found.notes), *_head(found), *_not_compared(folder)])


@registry.command()
def spent(folder: Folder, as_json: AsJson = False) -> None:
    """Add up ε and δ of the studies that read the same patients, one after another."""
    from ..registry.spent import spent as rows
    from ..views.registry import print_spent, spent_figures

    found = _at(folder).read()
    if as_json:
        _json(spent_figures(rows(found)))
    else:
        print_spent(rows(found))
        say(_not_compared(folder))


@registry.command()
def received(
    folder: Folder,
    release: Which,
    by: Annotated[str, typer.Option(metavar="WHO", help="Who receives it, in words.")],
    output: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the copy that they get: a new folder.")
    ] = None,
) -> None:
    """Note who receives a release, and write the copy that they get."""
    from ..registry.entries import Received

    place = _at(folder)
    known = place.read()
    chosen = known.usable(known.find(release).adapter)
    say(_warnings(place, known, chosen))
    if output is None:
        found = place.note(Received, adapter=chosen.adapter, receiver=by)
    else:
        found = place.hand_out(chosen.released, output, receiver=by)
    said = [f"{chosen.adapter} is received by {by}: `registry withdraw` names them, so that you tell them"]
    if output is not None:
        check = f"grandrounds verify {output} --manifest-hash {chosen.released.facts.manifest_sha256}"
        said.append(f"their copy is {output}; whoever has it checks it: {check}")
    say([*said, *_head(found)])


@registry.command()
def withdraw(folder: Folder, release: Version, reason: Reason) -> None:
    """Withdraw a release for good: it is neither put in use nor handed out any more; its ε stays spent."""
    from ..registry.entries import Withdrawn
    from ..registry.lineage import Lineage
    from ..views.registry import receivers

    place = _at(folder)
    chosen = place.read().find(_version(release))
    found = place.note(Withdrawn, adapter=chosen.adapter, reason=reason)
    name = chosen.adapter.name
    usable = [str(other.adapter) for other in found.versions(name) if other.withdrawn is None]
    say(
        [
            f"{chosen.adapter} is withdrawn. It was received by: {receivers(chosen)}"
            + ("; tell them to stop using it" if chosen.received else ""),
            "what it says of a patient is bounded by its ε as before: what was released stays released",
            *(
                [f"no version of {name} is in use now"]
                + [f"next: grandrounds registry rollback {folder} {usable[-1]} --reason WORDS" for _ in usable[:1]]
                if name not in found.in_use
                else []
            ),
            *_head(found),
        ]
    )
    for later in Lineage(
        folder=place, registry=found, release=chosen
    ).after:  # of which one that cannot be read withholds no withdrawal
        if later.withdrawn is None:
            told = f"it was received by: {receivers(later)}; withdraw it, too, unless the reason is none against it"
            say([f"{later.adapter} goes back to {chosen.adapter} and is not withdrawn: {told}"])


@registry.command()
def rollback(folder: Folder, release: Version, reason: Reason) -> None:
    """Put another version in use, usually an earlier one. Nothing is computed from records, so it costs no ε."""
    from ..registry.entries import Chosen

    place = _at(folder)
    known = place.read()
    chosen = known.find(_version(release))
    say(_warnings(place, known, chosen))
    found = place.note(Chosen, adapter=chosen.adapter, reason=reason)
    say([f"{chosen.adapter} is in use; that cost no ε", f"its files: {place.place(chosen.adapter)}", *_head(found)])


@registry.command()
def incident(
    folder: Folder,
    what: Annotated[str, typer.Argument(metavar="WORDS", help="What happened, in one line, and of no patient.")],
    about: Annotated[
        list[str] | None, typer.Option(metavar="NAME@VERSION", help="A release that it is about; may be repeated.")
    ] = None,
) -> None:
    """Note an incident, and which releases it is about."""
    from ..registry.entries import Incident

    place = _at(folder)
    known = place.read()
    found = place.note(Incident, what=what, about=tuple(known.find(_version(each)).adapter for each in about or ()))
    say(["the incident is noted; `grandrounds registry log` has all", *_head(found)])


@registry.command()
def verify(
    folder: Folder,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="The registry's public key, as you know it.")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head of its ledger that was noted earlier.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the whole ledger, and every claim of each release's study from the files that are kept."""
    from ..registry.checking import check
    from ..views.console import steps

    place = _at(folder)
    with steps() as step:
        found = place.read()
        checked = check(place, found, key=key, head=head, tell=step)
    if as_json:
        told = {"key": found.key, "head": found.ledger.head, "entries": len(found.ledger)}
        _json({"holds": True, **told, "open": checked.still_open})
    else:
        say([*checked.lines, *_head(found)])


@registry.command()
def drift(
    folder: Folder,
    release: Which,
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="Later records (.jsonl .csv .parquet).")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="RECORDS", help="Records as they were at its release (default: its report's figures)."),
    ] = None,
    members: Annotated[
        Path | None,
        typer.Option(metavar="RECORDS", help="Of patients whom it was trained on: attack it with them, too."),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The site whose records all of these are: without who opted out, minimised."),
    ] = None,
    patient: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of patients, if not patient_id.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of texts, if not text.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or hub name of the base model, if it is elsewhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a release on later records, public or your own; nothing is kept or sent. Exit code 3 where it drifted."""
    place = _at(folder)
    chosen = place.read().find(release)
    from ..adapter.finished import FinishedAdapter
    from ..registry.drift import Drift, Measured, measure, source_of
    from ..views.console import steps
    from ..views.registry import drift_figures, print_drift

    with steps() as step:
        step(f"loading {chosen.adapter}")
        manifest = place.case(chosen.released).verified.manifest
        from ...client.site.folder import SiteFolder
        from ...common.data.tokenisation import Tokenisation
        from ..attacks.release import attack_release, require_site
        from ..site_ops.users import act_as_worker

        of_site = None if site is None else SiteFolder(site)
        if members is not None:
            require_site(manifest, of_site)
        adapter = FinishedAdapter.read(place.place(chosen.adapter))
        found_base = adapter.base_folder(base)
        if of_site is not None:
            act_as_worker(of_site)  # who alone reads its records, policy and secret
        model = adapter.on(found_base)
        tokenisation = Tokenisation.load(str(found_base), vocabulary_size=model.vocabulary_size)
        then = Measured.by_report(chosen.released.facts) if against is None else None
        step("measuring")
        compared = [source_of(path, patient=patient, text=text) for path in (records, against) if path is not None]
        measured = [measure(model, tokenisation, source, site=of_site) for source in compared]
        attacks_now, attacks_then = None, chosen.released.facts.attacks
        if members is not None:
            known = source_of(members, patient=patient, text=text)
            attacks_now, *before = attack_release(
                model, tokenisation, adapter, manifest, members=known, others=compared, site=of_site, tell=step
            )
            attacks_then = before[0] if before else attacks_then
    found = Drift(now=measured[0], then=then or measured[1], attacks_now=attacks_now, attacks_then=attacks_then)
    if as_json:
        _json(drift_figures(found))
    else:
        print_drift(found, release=str(chosen.adapter), records=records.name)
    raise typer.Exit(3 if found.warnings else 0)


def _at(folder: Path) -> "RegistryFolder":
    from ..registry.folder import RegistryFolder

    return RegistryFolder(folder)


def _warnings(place: "RegistryFolder", known: "Registry", chosen: "Release") -> list[str]:
    from ..registry.lineage import Lineage
    from ..views.registry import withdrawn_lines

    return list(withdrawn_lines(Lineage(folder=place, registry=known, release=chosen)))


def _version(written: str) -> str:
    """What cannot be taken back is said of a version, not of whichever is in use."""
    from ...common.errors import StudyError

    if "@" not in written:
        raise StudyError(
            f"{written} names no version",
            why="this stands in the registry for good",
            fix=f"write {written}@1, or whichever; `grandrounds registry list` has all",
        )
    return written


def _head(found: "Registry") -> list[str]:
    return [f"the ledger's head, for somebody else to note: {found.ledger.head}"]


def _not_compared(folder: Path) -> list[str]:
    return [
        "the ledger is chained and signed; whose it is, and whether entries were taken off its end, was not compared: "
        f"grandrounds registry verify {folder} --key KEY --head HASH"
    ]


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
