"""How a site's training looks to its operator: the last steps as a picture of a terminal, or as a line each."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...client.site.training_view import NEVER_LEAVES, STEPS, SeenStep, read_steps
from ...common.errors import StorageError, StudyError, reason
from .display import sparkline

_ROWS: Final = 8
_CURVE: Final = 28
_PAUSE_S: Final = 0.5
_NONE: Final = "no step was seen yet"
_COLUMNS: Final = (
    "round",
    "attempt",
    "step",
    "units",
    "median norm",
    "clipped",
    "signal/noise",
    "tokens/s",
    "padding",
    "seconds",
)


def follow(console: Console, folder: Path, *, is_written: bool, stopped: Callable[[], bool]) -> None:
    """Show the steps that a worker writes to ``folder`` until ``stopped``: those that are there in any case.

    On a terminal it is a picture of the last ones, which moves; else each step is a line. Raises StudyError where
    there are none and none ``is_written``, and StorageError.
    """
    seen: deque[SeenStep] = deque(maxlen=_CURVE)
    place = 0
    with ExitStack() as shown:
        live = None
        if console.is_terminal:
            live = shown.enter_context(Live(console=console, auto_refresh=False))
        else:
            console.print(NEVER_LEAVES, soft_wrap=True)
        while True:
            new, place = _read(folder / STEPS, place, is_written=is_written)
            seen.extend(new)
            if live is not None:
                live.update(_picture(list(seen)), refresh=True)
            else:
                for step in new:
                    console.print(_line(step), soft_wrap=True)
            if stopped():
                if live is None and not seen:
                    console.print(_NONE)
                return
            time.sleep(_PAUSE_S)


def _read(path: Path, start: int, *, is_written: bool) -> tuple[list[SeenStep], int]:
    try:
        return read_steps(path, start)
    except FileNotFoundError as error:
        if is_written:
            return [], 0
        raise StudyError(
            "what this site sees of its training is not written",
            why="its figures follow from records, and no noise protects them: a site that wants them says so",
            fix="set training_view = true in site.toml, and start the site's worker anew",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {reason(error)}",
            why="the worker writes there what its steps were, for its own user alone",
            fix="run this as the worker's user, or as root",
        ) from error


def _picture(steps: Sequence[SeenStep]) -> RenderableType:
    """The last step in words, how its figures came about, and a row for each of the last few."""
    if not steps:
        return Group(Text(NEVER_LEAVES, "yellow"), Text(f"\n{_NONE}"))
    last = steps[-1]
    head = f"round {last.round} · attempt {last.attempt} · step {last.step} · {last.time[11:19]} UTC"
    return Group(
        Text(NEVER_LEAVES, "yellow"),
        Text(f"\n{head}", "bold"),
        Padding(_facts(steps), (0, 0, 1, 2)),
        Padding(_table(steps[-_ROWS:]), (0, 0, 0, 2)),
    )


def _line(seen: SeenStep) -> str:
    """A step where there is no terminal."""
    named = zip(_COLUMNS, _row(seen), strict=True)
    return ", ".join(f"{name} {value}" for name, value in named)


def _facts(steps: Sequence[SeenStep]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_column(no_wrap=True, style="cyan")
    last = steps[-1]
    failed = f", of whom {last.failed} count as zero" if last.failed else ""
    table.add_row("units", f"{last.units} drawn{failed}; {last.records} windows", _curve([s.units for s in steps]))
    if last.norms is not None:
        least, quarter, median, three_quarters, greatest = last.norms
        table.add_row(
            "norm before clipping",
            f"{median:.3g} in the median; half {quarter:.3g} to {three_quarters:.3g}, all {least:.3g} to "
            f"{greatest:.3g}",
            _curve([seen.norms[2] if seen.norms else None for seen in steps]),
        )
    table.add_row("clipped", _percent(last.clipped), _curve([seen.clipped for seen in steps]))
    table.add_row("signal to noise", _ratio(last.signal_to_noise), _curve([seen.signal_to_noise for seen in steps]))
    table.add_row(
        "speed",
        f"{last.tokens_a_second:,.0f} tokens a second, and {_percent(last.padding)} padding",
        _curve([seen.tokens_a_second for seen in steps]),
    )
    parts = {"gradients": last.gradients_s, "clip and sum": last.sums_s, "waiting for noise": last.noise_s}
    shares = ", ".join(f"{name} {_percent(part / (last.seconds or 1))}" for name, part in parts.items())
    table.add_row("time", f"{last.seconds:.3g} s: {shares}", _curve([seen.seconds for seen in steps]))
    table.add_row("batches", ", ".join(f"{number} of {shape}" for shape, number in last.batches.items()) or "none")
    on_gpu = f", and {last.gpu_bytes / 2**30:.1f} GiB of the GPU's" if last.gpu_bytes else ""
    table.add_row("memory", f"{last.memory_bytes / 2**30:.1f} GiB at most{on_gpu}")
    return table


def _table(steps: Sequence[SeenStep]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="right", header_style="dim")
    for seen in steps:
        table.add_row(*_row(seen))
    return table


def _row(seen: SeenStep) -> tuple[str, ...]:
    return (
        str(seen.round),
        str(seen.attempt),
        str(seen.step),
        str(seen.units),
        f"{seen.norms[2]:.3g}" if seen.norms else "–",
        _percent(seen.clipped),
        _ratio(seen.signal_to_noise),
        f"{seen.tokens_a_second:,.0f}",
        _percent(seen.padding),
        f"{seen.seconds:.3g}",
    )


def _curve(values: Sequence[float | None]) -> str:
    return sparkline([value for value in values if value is not None], _CURVE)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3g}"
