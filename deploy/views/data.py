"""How a site's own records are shown to its operator: on the terminal, as figures for machines, and as a page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...client.site.data_report import DataReport, Spread
from ...client.site.opt_outs import LINES_NAMED

_CELLS: Final = 32
_BUCKETS: Final = ("computed as", "windows", "padding")
ALONE: Final = (
    "No noise protects these figures, and no study sends any of them: they are for this site alone, and neither they "
    "nor a page of them may leave the hospital."
)
MACHINE: Final = "How this machine computes the study, as client check found it"
# A histogram's own coordinates, which the page scales to its width.
_WIDTH, _HEIGHT, _ABOVE, _BELOW = 440, 170, 18, 22
_WIDEST: Final = 60


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a histogram, in its coordinates: the bin's place, and what a reader is told of it."""

    x: float
    y: float
    width: float
    height: float
    count: str
    upto: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an operator should look at: what was found, what it means, and where."""

    title: str
    text: str
    rows: tuple[tuple[str, str, str], ...] = ()


def data_figures(report: DataReport) -> dict[str, Any]:
    """The same for machines."""
    return asdict(report)


def print_data(console: Console, report: DataReport) -> None:
    """Print all of it."""
    console.print(Text.assemble((f"\n{_source(report)}", "bold")))
    console.print(Padding(_grid(facts(report)), (0, 0, 0, 2)))
    for title, spread in spreads(report).items():
        console.print(Text(f"\n{title}", "bold"))
        console.print(Padding(_drawn(spread), (0, 0, 0, 2)))
    console.print(Text(f"\n{windows_title(report)}", "bold"))
    cut = ("prompts cut", "tokens lost") if _prompts(report) else ()
    console.print(Padding(_table(("tokens", "windows", "padding", *cut), window_rows(report)), (0, 0, 0, 2)))
    if buckets := bucket_rows(report):
        console.print(Padding(_table(_BUCKETS, buckets), (1, 0, 0, 2)))
    if report.step is not None:
        console.print(Text("\nWhat one step reads, on average", "bold"))
        console.print(Padding(_grid(step_facts(report)), (0, 0, 0, 2)))
    if report.machine:
        console.print(Text(f"\n{MACHINE}", "bold"))
        console.print(Padding(_grid([("·", line) for line in report.machine]), (0, 0, 0, 2)))
    for finding in findings(report):
        console.print(Text(f"\n{finding.title}", "bold"))
        console.print(Padding(finding.text, (0, 0, 0, 2)))
        for row in finding.rows:
            console.print(Padding("  ".join(filter(None, row)), (0, 0, 0, 4)))
    console.print(f"\n{ALONE}")


def render_data(report: DataReport, *, site: str, written: datetime) -> str:
    """One page that loads nothing from elsewhere and runs no script."""
    from ...server.report.page import rendered  # loads jinja2 and numpy, which the terminal does not need

    return rendered(
        __package__,
        "data.html",
        site=site,
        written=written,
        report=report,
        alone=ALONE,
        facts=facts(report),
        charts={title: columns(spread) for title, spread in spreads(report).items()},
        windows_title=windows_title(report),
        windows=window_rows(report),
        prompts=_prompts(report),
        buckets=bucket_rows(report),
        step=step_facts(report),
        machine_title=MACHINE,
        findings=list(findings(report)),
        width=_WIDTH,
        height=_HEIGHT,
        bottom=_HEIGHT - _BELOW,
    )


def facts(report: DataReport) -> list[tuple[str, str]]:
    """What there is, line by line."""
    matched = report.opt_out_lines - len(report.unmatched)
    of_all = report.sampled is None or report.sampled >= report.records
    counted = "all records" if of_all else f"{report.sampled:,} records, drawn from all"
    return [
        (
            "patients",
            f"{report.patients:,}" + (f", without whom the opt-outs mean (lines: {matched:,})" if matched else ""),
        ),
        ("records", f"{report.records:,}"),
        ("records of a patient", _in_words(report.records_each)),
        ("tokens of a record", f"{_in_words(report.tokens_each)}; counted of {counted}"),
    ]


def spreads(report: DataReport) -> dict[str, Spread]:
    """What is drawn."""
    records = "Records" if report.sampled is None or report.sampled >= report.records else "Records of the sample"
    return {"Patients by how many records they have": report.records_each, f"{records} by tokens": report.tokens_each}


def columns(spread: Spread) -> list[Column]:
    """A histogram's columns."""
    highest, width = max(bin_.count for bin_ in spread.bins), min(_WIDTH / len(spread.bins), _WIDEST)
    drawn = []
    for number, bin_ in enumerate(spread.bins):
        height = (_HEIGHT - _ABOVE - _BELOW) * bin_.count / highest
        drawn.append(
            Column(
                x=number * width,
                y=_HEIGHT - _BELOW - height,
                width=width,
                height=height,
                count=short(bin_.count) if bin_.count else "",
                upto=f"{'' if bin_.first == bin_.last else '≤ '}{short(bin_.last)}",
                label=f"{_span(bin_.first, bin_.last)}: {bin_.count:,}",
            )
        )
    return drawn


def windows_title(report: DataReport) -> str:
    """What the table of windows is of."""
    return f"All of it in windows, as {'study ' + report.study + ' reads' if report.study else 'studies may read'} them"


def window_rows(report: DataReport) -> list[tuple[str, ...]]:
    """Of each length of windows: how many, padding, and what of prompts is cut, where there are prompts."""
    shown, rows = _shown(report), []
    for windows in report.windows:
        row = (f"{windows.max_tokens:,}", shown(windows.windows), _percent(windows.padding))
        cut = (shown(windows.cut), _percent(windows.lost)) if _prompts(report) else ()
        rows.append((*row, *cut))
    return rows


def bucket_rows(report: DataReport) -> list[tuple[str, ...]]:
    """Of a study's windows by the lengths that they are computed as: how many, and padding; nothing of one length."""
    buckets = report.windows[0].buckets if report.study else ()
    shown = _shown(report)
    if len(buckets) < 2:
        return []
    return [(f"{bucket.tokens:,}", shown(bucket.windows), _percent(bucket.padding)) for bucket in buckets]


def step_facts(report: DataReport) -> list[tuple[str, str]]:
    """What a study's step reads, line by line; nothing without a study."""
    step = report.step
    if step is None:
        return []
    unit = f"{step.unit}s"
    return [
        (unit, f"{_mean(step.units)}, and never more than {step.most_units:,}; each once in {step.every:.3g} steps"),
        ("windows", f"{_mean(step.windows)}, which are {_percent(step.share)} of all"),
        ("tokens", f"{step.tokens:,.0f}, with padding {step.computed:,.0f}"),
        (
            f"all {step.steps:,} steps",
            f"read each of the {unit} {step.steps / step.every:.3g} times, and {_percent(step.share_read)} of all "
            "windows at least once",
        ),
    ]


def findings(report: DataReport) -> Iterator[Finding]:
    """What an operator should look at."""
    if report.set_aside:
        yield Finding(
            title=f"Records that cannot be trained on: {sum(one.count for one in report.set_aside):,}",
            text="They keep their places and count as zero, which nobody else is told. By reason, and where first:",
            rows=tuple((f"{one.count:,}", one.reason, "; ".join(one.places)) for one in report.set_aside),
        )
    if report.repeated:
        yield Finding(
            title=f"Records that repeat another of their patient: {report.repeated:,}",
            text="Each counts as a record of its own, so that what it says is read more often. Was something exported "
            'twice? With duplicates = "once" in [minimise] of policy.toml each counts once.',
        )
    if report.shared:
        yield Finding(
            title=f"Texts of several patients: {report.shared:,}",
            text="An empty form, perhaps; or one person under two identifiers, for whom a study's ε would be twice "
            "what it says.",
        )
    if report.unmatched:
        lines = ", ".join(map(str, report.unmatched[:LINES_NAMED])) + (
            ", …" if len(report.unmatched) > LINES_NAMED else ""
        )
        yield Finding(
            title=f"Lines of the opt-outs that match nobody: {len(report.unmatched):,} of {report.opt_out_lines:,}",
            text=f"Line {lines}: right for who has no records here, and wrong where an identifier is written in "
            "another way.",
        )
    if any(windows.cut for windows in report.windows):
        yield Finding(
            title="Prompts lose their beginnings",
            text="A completion stays whole, and of a prompt that is too long the end is read and the beginning is not. "
            "How many are too long, and how much is lost, stands in the table of windows.",
        )


def short(number: int) -> str:
    """A number in a few letters.

    >>> short(950), short(1200), short(16_384), short(2_500_000)
    ('950', '1.2k', '16k', '2.5M')
    """
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.{0 if number >= 10 * size or number % size < size // 20 else 1}f}{letter}"
    return str(number)


def _source(report: DataReport) -> str:
    return report.source + (f", for study {report.study}" if report.study else "")


def _in_words(spread: Spread) -> str:
    if spread.least == spread.greatest:
        return f"{spread.least:,} each"
    return (
        f"{spread.median:,} in the median, {_mean(spread.mean)} on average; four fifths have {spread.tenth:,} to "
        f"{spread.nine_tenths:,}, and all {spread.least:,} to {spread.greatest:,}"
    )


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _mean(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _about(number: int) -> str:
    """A number that is estimated.

    >>> _about(1_234_567), _about(46)
    ('about 1,230,000', 'about 46')
    """
    return f"about {float(f'{number:.3g}'):,.0f}"


def _percent(share: float) -> str:
    """A share with what can be seen of it.

    >>> _percent(0), _percent(0.0004), _percent(0.034), _percent(0.34), _percent(1)
    ('0 %', '0.04 %', '3.4 %', '34 %', '100 %')
    """
    return f"{100 * share:.2g} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def _shown(report: DataReport) -> Callable[[int], str]:
    """How a number of windows is written: what is estimated is not given to the last digit."""
    return "{:,}".format if report.sampled is None else _about


def _prompts(report: DataReport) -> bool:
    return any(windows.cut for windows in report.windows)


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _drawn(spread: Spread) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(justify="right", no_wrap=True)
    highest = max(bin_.count for bin_ in spread.bins)
    for bin_ in spread.bins:
        cells = -(-_CELLS * bin_.count // highest)
        table.add_row(_span(bin_.first, bin_.last), "█" * cells, f"{bin_.count:,}")
    return table


def _table(columns: Sequence[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
