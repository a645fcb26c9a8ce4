"""How a sweep is shown: its settings, the best first."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...server.report.claim import count
from ..plan.grid import shown
from ..plan.sweep import Sweep, Tried


def print_sweep(console: Console, sweep: Sweep) -> None:
    """Print the settings by rank, and what their ranks are worth."""
    runs = len(sweep.best.after)
    console.print(Text("\nSettings by the perplexity of what was held out, the best first", style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    is_staged = any(one.study.privacy.noise_stages for one in sweep.tried)
    z = "z, from the attempt on" if is_staged else "z"
    for column in ("perplexity", "± (of its logarithm)", "before", z):
        table.add_column(column, justify="right")
    table.add_column("setting", overflow="fold")
    for one in sweep.tried:
        spread = "" if one.spread is None else f"{one.spread:.3f}"
        cells = (f"{one.perplexity:.4g}", spread, f"{one.before[0]:.4g}", _noise(one))
        table.add_row(*cells, shown(one.setting), style="bold" if one is sweep.best else "")
    console.print(Padding(table, (0, 0, 0, 2)))
    units, patients = count(sweep.trained, "unit"), count(sweep.held_out, "patient")
    worth = (
        "one run each: what two runs of one setting differ by is not seen (repeats = 3 in the grid shows it)"
        if runs == 1
        else f"{runs} runs each, with another A, other draws and other noise: what differs by less than twice the two "
        "errors may be chance"
    )
    console.print(
        f"  Trained on {units} of {sweep.source}, in one place, each setting with the noise of the study's ε and of "
        f"all sites present; ranked by {patients} held out; {worth}. The first is planned below. What a setting is "
        "worth on the sites' records is another question, and not asked here.",
        soft_wrap=True,
    )


def _noise(one: Tried) -> str:
    """The noise multiplier, and where noise has stages each one's, with the attempt that it begins with."""
    z, stages = one.noise_multiplier, one.study.privacy.noise_stages
    return "".join([f"{z:g}", *(f", {factor * z:.4g} from {attempt}" for attempt, factor in stages)])
