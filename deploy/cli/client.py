"""``grandrounds client``: a site's side of its studies."""

import json
import sys
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from ...common.errors import StoppedError, StorageError
from .site import Folder, Study, site_of, watch
from .terminal import confirmed, say, until_stopped

_READING: Final = "reading the site's records …"

client = typer.Typer(name="client", help="A site's side of its studies.", no_args_is_help=True)


@client.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The site's name in studies.")],
    data: Annotated[
        Path, typer.Option(help="Its records: a file, folder or glob; or a TOML file with a table 'data'.")
    ],
    model: Annotated[str, typer.Option(help="The base model: its folder, or builtin.")] = "builtin",
    device: Annotated[
        list[str], typer.Option(metavar="NAME", help="Where the model computes: cpu, cuda, cuda:1; or several.")
    ] = ["cpu"],  # noqa: B006 (typer copies it)
    worker_user: Annotated[str | None, typer.Option(help="Who reads the records, where root starts the site.")] = None,
    node_user: Annotated[str | None, typer.Option(help="Who talks to the server, where root starts the site.")] = None,
    runtime_port: Annotated[
        int | None, typer.Option(help="Of the first study's SuperNode, on loopback: one for each site of a machine.")
    ] = None,
    new_budget: Annotated[
        bool, typer.Option("--new-budget", help="Nothing was ever released of these records, though they had a site.")
    ] = False,
) -> None:
    """Make the site's keys, settings and policy, where they are missing."""
    from ..site_ops import commands as site_operator
    from ..site_ops.known_data import claimed
    from ..site_ops.site_data import SiteData

    site, given = site_of(folder), SiteData.given(data)
    machine: dict[str, Any] = {"devices": device, "worker_user": worker_user, "node_user": node_user}
    machine["runtime_port"] = runtime_port
    with claimed(given.data, site, new_budget=new_budget):
        say([_READING])
        say(site_operator.init(site, name=name, data=given.data, held_out=given.held_out, model=model, **machine))


@client.command()
def recover(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without being asked.")] = False,
) -> None:
    """Start again after the site's state was lost, with everything spent."""
    from ..site_ops import commands as site_operator

    site = site_of(folder)
    site.settings()  # or it is no site
    if not yes and not confirmed("Is this site's state lost, and is all of its patients' budget to count as spent?"):
        raise StoppedError(
            "nothing was recovered, and nothing was changed",
            why="what the site's patients had left would count as spent",
            fix="mount or put back the folder `state` if it is not lost; else repeat this and agree, or give --yes",
        )
    say(site_operator.recover(site))


@client.command()
def join(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(metavar="STUDY.zip", help="The study, as the server's operator sent it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked.")] = False,
    new_asset: Annotated[
        bool, typer.Option("--new-asset", help="The policy names a further data asset, of other patients.")
    ] = False,
) -> None:
    """Show a study against the site's policy, budget and data; then agree to it, or not (exit code 1)."""
    from ..enrolment.bundle import Bundle, checked_audit, described
    from ..site_ops import commands as site_operator
    from ..site_ops.adoption import offer_policy
    from ..site_ops.terms import Terms

    def agreed(terms: Terms) -> bool:
        say(f"{name:10}{text}" for name, text in zip_longest(("data",), terms.data, fillvalue=""))
        say([f"{'budget':10}{terms.budget}"])
        other = ", ".join(terms.beside)
        question = f"Has {terms.asset}, a data asset that is new here, other patients than {other}, and none of theirs?"
        is_asset = not terms.beside or new_asset or confirmed(question)
        return is_asset and (yes or confirmed("Does this site agree?"))

    study, site = Bundle.read(bundle), site_of(folder)
    manifest = study.manifest
    audit = checked_audit(manifest.study, study.audit, package_sha256=manifest.package_sha256)
    say(f"{field:10}{text}" for field, text in described(manifest, audit=audit).items())
    if not yes:
        offer_policy(site, manifest, confirmed=confirmed, say=lambda line: say([line]))
    say([_READING])
    say(site_operator.join_study(site, study, agreed=agreed))


@client.command()
def prepare(
    folder: Folder,
    study: Study = "",
    again: Annotated[bool, typer.Option("--again", help="Anew, though nothing seems to have changed.")] = False,
) -> None:
    """Tokenise the site's records for a study, once; interrupted, the same command goes on where it stopped."""
    from ..site_ops import records as site_records
    from ..site_ops.users import act_as_worker
    from ..views.console import records_done

    site = site_of(folder)
    joined = site.study(study)
    joined.check_code()
    act_as_worker(site)
    with records_done() as progress:
        said = site_records.prepare(site, joined, again=again, progress=progress)
    say(said)


@client.command()
def forget(folder: Folder) -> None:
    """Take who opted out, by the policy's list, out of the prepared records for good."""
    from ..site_ops import records as site_records

    say(site_records.forget(site_of(folder)))


@client.command()
def check(
    folder: Folder,
    study: Study = "",
    connect: Annotated[bool, typer.Option("--connect", help="Try the way to the server instead.")] = False,
    opt_outs_match_nobody: Annotated[
        bool, typer.Option("--opt-outs-match-nobody", help="It is right that no opt-out matches a patient.")
    ] = False,
) -> None:
    """Try the site's own records, and with a study two private steps on them; or the way to the server.

    Records are prepared for the study where they are not yet, and how this machine computes is kept for `client data`;
    nothing is sent.
    """
    from ..site_ops.users import act_as_worker

    site = site_of(folder)
    if not study and not connect and not site.joined():
        from ...client.site.survey import Survey
        from ...common.model.devices import PROCESSORS, open_device

        act_as_worker(site)
        say([_READING])
        say([*Survey.of(site.settings(), site.policy()).lines, *site.minimiser().rules.told])
        for device in site.settings().devices:
            if device != PROCESSORS:  # of which there is always one, and torch takes a second to load
                open_device(device)
        say(["no study was joined yet; nothing was reserved, and nothing was sent"])
        return
    joined = site.study(study)
    if connect:
        from ..site_ops.connection import check_connection

        say(check_connection(site, joined))
        return
    joined.check_code()
    act_as_worker(site)
    say([_READING])
    from ..site_ops.check import check as check_site  # here, as that user: it loads the model's libraries
    from ..views.console import records_done

    with records_done() as progress:
        said = check_site(site, joined, opt_outs_match_nobody=opt_outs_match_nobody, progress=progress)
    say(said)


@client.command()
def data(
    folder: Folder,
    study: Study = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove all prepared records instead; not the site's data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them without being asked.")] = False,
) -> None:
    """Show what the site's records come to, for its operator alone; and write the same as a page, DIR/data.html."""
    from ..site_ops import records as site_records
    from ..site_ops.owner import done_as
    from ..site_ops.users import worker_of
    from ..views.console import plain_console
    from ..views.data import data_figures, print_data, render_data

    site = site_of(folder)
    settings = site.settings()
    if delete:
        if not yes and not confirmed(f"Remove all that is prepared in {site.prepared}, for whichever study?"):
            raise StoppedError(
                "nothing was removed",
                why="preparing a million records again takes an hour",
                fix="repeat this and agree, or give --yes",
            )
        say(site_records.delete(site))
        return
    joined = site.study(study) if study or len(site.joined()) == 1 else None
    if not as_json:
        say([_READING])

    def read() -> str:
        """The page; what is printed goes to standard output from here."""
        report = site_records.data_report(site, joined)
        if as_json:
            typer.echo(json.dumps(data_figures(report)))
        else:
            print_data(plain_console(highlight=False), report)
        sys.stdout.flush()
        return render_data(report, site=settings.name, written=datetime.now(UTC))

    page = site_records.write_page(site, done_as(worker_of(settings), read))
    if not as_json:
        say(["", f"the same as a page, which is for this site alone, too: {page}"])


@client.command()
def start(folder: Folder, study: Study = "") -> None:
    """Keep worker and node of every study running, or of one, until SIGTERM."""
    from ..site_ops import programs as site_programs

    site = site_of(folder)
    studies = [site.study(study)] if study else site_programs.runnable(site, say=lambda text: say([text]))
    site_programs.start(site, studies, stopped=until_stopped(), say=lambda text: say([text]))


@client.command()
def worker(folder: Folder, study: Study = "") -> None:
    """Run the worker alone: it reads the records and has the key, and needs no network."""
    from ..site_ops import programs as site_programs

    site = site_of(folder)
    site_programs.worker(site, site.study(study))


@client.command()
def node(folder: Folder, study: Study = "") -> None:
    """Run what carries the worker's messages: it needs the network, and neither key nor records."""
    import logging

    from ..site_ops import programs as site_programs

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    site = site_of(folder)
    site_programs.node(site, site.study(study), stopped=until_stopped())


client.command()(watch)


@client.command()
def health(
    folder: Folder, study: Study = "", as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say how worker, node and relay are, and what keeps them from the study (exit code 1 where one is away)."""
    from ..site_ops.health import health as site_health

    site = site_of(folder)
    found = site_health(site, site.study(study))
    if as_json:
        typer.echo(json.dumps({**(found.worker or {}), "well": found.is_well, **found.states}))
    else:
        say(f"{name:8}{state}" for name, state in found.states.items())
    if not found.is_well:
        raise typer.Exit(1)


@client.command()
def pause(folder: Folder) -> None:
    """Take part in nothing new until `client unpause`; an attempt that was paid for is finished."""
    from ...client.site.site_log import SiteLog

    site = site_of(folder)
    site.settings()  # or it is no site
    site.pause()  # before it is noted: it has to be possible on a full disk, too
    SiteLog(site).note("paused")
    say([f"this site takes part in nothing new until: grandrounds client unpause {folder}"])


@client.command()
def unpause(folder: Folder) -> None:
    """Take part again."""
    from ...client.site.site_log import SiteLog

    site = site_of(folder)
    SiteLog(site).note("unpaused")
    site.go_on()
    say(["this site takes part again"])


@client.command()
def leave(folder: Folder, study: Study = "") -> None:
    """Take part in a study no more."""
    from ..site_ops import commands as site_operator

    site = site_of(folder)
    say(site_operator.leave(site, site.study(study)))


@client.command()
def fetch(
    folder: Folder,
    study: Study = "",
    output: Annotated[Path | None, typer.Option(help="Copy what the study left to here, too.")] = None,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack the adapter with this site's own records, for this site alone.")
    ] = False,
) -> None:
    """Verify what the finished study left here, and measure its adapter on the site's own held-out records."""
    from ..site_ops.users import act_as_worker

    site = site_of(folder)
    joined = site.study(study)
    act_as_worker(site)
    say([f"verifying what study {joined.name} left here …"])
    from ..site_ops.fetch import fetch as fetch_results  # here, as that user: it loads the model's libraries

    say(fetch_results(site, joined, output=output))
    if attack:
        from ..attacks.site import attack as attacked
        from ..views.console import steps

        with steps() as step:
            found = list(attacked(site, joined, tell=step))
        say(found)


@client.command()
def log(
    folder: Folder,
    form: Annotated[Literal["jsonl", "cef"], typer.Option("--format", help="JSON lines, or CEF for a SIEM.")] = "jsonl",
) -> None:
    """Print what this site's operators had done: joins, changes of the policy, and the rest, with time and user."""
    from ...client.site.site_log import SiteLog
    from ..views.site_log import as_cef, as_json_line

    entries = list(SiteLog(site_of(folder)).entries())
    say(map(as_cef if form == "cef" else as_json_line, entries))
    if not all(entry["intact"] for entry in entries):
        raise StorageError(
            "the log does not continue what was there before",
            why="an entry was changed, or taken out or put in, after it was written",
            fix="compare it with what was exported before; the entries without it are those that follow a change",
        )


@client.command()
def budget(
    state: Annotated[Path, typer.Option(help="The folder of the site's state.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with the same here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the site's patients may be asked to bear, what studies have set aside of it, and what is left."""
    from ...client.budget.reservations import Reservations
    from ...client.site.folder import SETTINGS, SiteFolder
    from ...client.state.database import SiteDatabase
    from ...common.system.files import write_atomically
    from ..site_ops.known_studies import known_studies
    from ..site_ops.owner import done_as, owner_of
    from ..views.budget import budget_figures, print_budget, render_budget
    from ..views.console import plain_console

    def read() -> str:
        """The page, if it is asked for; what is printed goes to standard output from here."""
        database = SiteDatabase.open_existing(state)
        try:
            statements = Reservations(database).statements()
        finally:
            database.close()
        if as_json:
            typer.echo(json.dumps({"assets": budget_figures(statements)}))
        else:
            print_budget(plain_console(highlight=False), statements)
        sys.stdout.flush()
        if html is None:
            return ""
        site = SiteFolder(state.absolute().parent)
        is_site = (site.path / SETTINGS).is_file()  # else it is a state alone
        return render_budget(
            statements,
            site=site.settings().name if is_site else "",
            written=datetime.now(UTC),
            studies=known_studies(site, statements) if is_site else {},
            beside=html.absolute().parent,
        )

    page = done_as(owner_of(state), read)
    if html is not None:
        write_atomically(html, page.encode())
