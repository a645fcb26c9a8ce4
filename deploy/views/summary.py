"""What one is told when a simulation has ended: results, times, what was written, and what to try next."""

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ...common.durations import duration
from ...common.study.artefacts import ADAPTER, MANIFEST, PAGE, REPORT
from ...server.report.audit import Audited
from ...server.report.claim import NO_PRIVACY, count
from ...server.report.report import Report
from ...server.report.rounding import number, up

_WRITTEN: Final = {
    ADAPTER: "its model card, README.md, says how it is used; `grandrounds adapter try` shows what it does",
    PAGE: "the page for a privacy officer",
    REPORT: "the same for machines",
    MANIFEST: "the manifest that every site agreed to",
    "ledger": "what the server and the sites signed: the evidence",
    "checkpoints": "the last rounds",
}


def print_summary(console: Console, report: Report, folder: Path, seconds: Mapping[str, float]) -> None:
    """Print the results of a study in ``folder`` and the time of each phase, where any was measured.

    No command is broken across lines.
    """
    console.print()
    if report["claim"] is None:
        console.print(no_privacy(), highlight=False)
    console.print(
        Group(
            _titled("Result", _results(report)),
            *([_titled("Time", _times(seconds))] if seconds else []),
            _titled("Written", _rows((str(folder / name), why) for name, why in _WRITTEN.items())),
            Text("\nTry next", style="bold"),
        ),
        highlight=False,
    )
    for command in next_commands(report, folder):
        console.print(Text(f"  {command}", style="cyan"), soft_wrap=True, highlight=False)


def next_commands(report: Report, folder: Path) -> tuple[str, str, str]:
    """Three commands, ready to be pasted into a shell."""
    program = _program()
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    page = f"{opener} {shlex.quote(str(folder / 'report.html'))}"
    verify = f"{program} verify {shlex.quote(str(folder))} --manifest-hash {report['manifest_sha256']}"
    if report["claim"] is None:
        return (page, f"{program} simulate", verify)
    steps = report["max_attempts"] * report["local_steps"]
    overlap = f" --sites-per-patient {report['sites_per_patient']}" if report["sites_per_patient"] > 1 else ""
    stages = "".join(
        f" --noise-stage {stage['from_attempt']}:{stage['factor']:.6g}" for stage in report["mechanism"]["noise_stages"]
    )
    delta = report["delta"] - report["sampler"]["delta_of_caps"]
    epsilon = (
        f"{program} epsilon --noise-multiplier {report['noise_multiplier']:.6g} --sampling-probability "
        f"{report['sampling_probability']:.6g} --steps {steps} --delta {delta:.6g}"
        f"{overlap}{stages} --trust {report['trust']}"
    )
    return (page, epsilon, verify)


def no_privacy() -> RenderableType:
    """The warning that no one can overlook."""
    title, text = NO_PRIVACY.split(". ", 1)
    return Panel(Text(text), title=title, style="bold white on red")


def _results(report: Report) -> Table:
    dropouts = len(report["dropouts"])
    rounds = f"{report['rounds']} of {report['planned_rounds']} in {count(report['attempts'], 'attempt')}"
    rows = [
        (
            "perplexity",
            f"{number(report['perplexity_before'])} → {number(report['perplexity_after'])} on held-out text, over "
            "whole records",
        ),
        *(
            (f"  {row['tokens']}", f"{number(row['before'])} → {number(row['after'])}{_change(row)}")
            for row in report["utility"]["by_position"]
        ),
        ("", report["utility"]["verdict"]),
        *([("groups", report["utility"]["groups_verdict"])] if report["utility"]["groups_verdict"] else []),
        ("rounds", f"{rounds}; a site dropped out {count(dropouts, 'time')}" if dropouts else rounds),
    ]
    if report["exhausted"]:
        rows.append(("", "the schedule of attempts was used up before the planned rounds"))
    if report["claim"] is None:
        return _rows([*rows, ("privacy", "none, and no claim")])
    return _rows(
        [
            *rows,
            ("privacy", f"ε = {up(report['epsilon'])} at δ = {report['delta']:g} for each {report['privacy_unit']}"),
            ("against", report["adversary"]),
            ("audit", _audited(report)),
            *([("attacks", report["attacks"]["says"])] if report["attacks"]["found"] else []),
            ("signed", f"by {len(report['signatures']['sites'])} of {report['sites']} sites; verify recomputes it"),
        ]
    )


def _audited(report: Report) -> str:
    found = report["audit"]["found"]
    return "none is part of the report" if found is None else Audited(**found).in_brief


def _times(seconds: Mapping[str, float]) -> Table:
    return _rows((name, duration(took)) for name, took in {**seconds, "in all": sum(seconds.values())}.items())


def _change(row: Mapping[str, object]) -> str:
    if row["worse"]:
        return "  worse"
    return "" if row["before"] == row["after"] else "  better"


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  {name}", value)
    return table


def _titled(title: str, table: Table) -> Group:
    return Group(Text(f"\n{title}", style="bold"), table)


def _program() -> str:
    """How this command was started, so that what is suggested can be run the same way."""
    started_as = Path(sys.argv[0])
    return shlex.quote(str(started_as)) if started_as.name == "grandrounds" else "grandrounds"
