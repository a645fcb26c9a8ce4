"""What one sees of a running study: lines as things end, and on a terminal a picture of what goes on beneath them."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ...common.durations import duration
from ...common.study.manifest import Manifest
from ...server.report.claim import NO_PRIVACY, count
from ...server.report.page import DROPPED_WHEN
from ...server.report.report import Report
from ...server.report.rounding import number, up
from ...server.rounds.training import ExchangeClosed, RoundOutcome
from ...server.run.progress import Event, PhaseEnded, PhaseProgress, PhaseStarted, StudyReady, Told
from .console import plain_console
from .summary import no_privacy, print_summary

TRAINING: Final = "training"  # the phase that has rounds
# The exchanges of an attempt in their order, and what a viewer calls them.
EXCHANGES: Final = {
    "advert": "keys",
    "shares": "shares",
    "masked-input": "update",
    "consistency": "agreement",
    "unmask": "unmasking",
}
ANSWERED, DROPPED, AWAITED, AHEAD = "●", "✕", "◌", "·"
_STYLES: Final = {ANSWERED: "green", DROPPED: "bold red", AWAITED: "yellow", AHEAD: "dim"}
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_BAR_WIDTH: Final = 28
_INDENT: Final = 15


class Display:
    """Shows the events of a study as they come: ``with Display() as display: ... display.observe``.

    Without a terminal nothing moves: each event that ends something is one line, and no line is wrapped.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Quiet: nothing but a warning on stderr where there is no privacy. ``clock`` gives seconds for all times."""
        self.console = console or plain_console(quiet=quiet)
        self.phases: dict[str, float] = {}
        self._clock = clock
        self._phase: PhaseStarted | None = None
        self._progress: PhaseProgress | None = None
        self._study: StudyReady | None = None
        self._rounds: tuple[RoundOutcome, ...] = ()
        self._exchanges: tuple[ExchangeClosed, ...] = ()
        self._phase_started_at = self._round_started_at = self._training_started_at = clock()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def observe(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Told():
                self._tell(event.text)
            case PhaseStarted():
                self._phase, self._progress, self._phase_started_at = event, None, self._clock()
                if not self.console.is_terminal:
                    self._say(f"{event.name:<{_INDENT}}{event.detail}")
            case PhaseProgress():
                self._progress = event
            case PhaseEnded():
                self._end_phase(event)
            case StudyReady():
                self._open_study(event)
            case ExchangeClosed():
                self._exchanges = (*self._exchanges, event) if self._continues(event) else (event,)
            case RoundOutcome():
                self._close_round(event)

    def summary(self, report: Report, folder: Path) -> None:
        """Say what came of the study, what was written to ``folder``, and what to try next."""
        print_summary(self.console, report, folder, self.phases)

    def _end_phase(self, event: PhaseEnded) -> None:
        self.phases[event.name] = event.seconds
        detail = self._phase.detail if self._phase and self._phase.name == event.name else ""
        self._phase = self._progress = None
        took = duration(event.seconds)
        if self.console.is_terminal:
            line = Text.assemble(("✓ ", "green"), f"{event.name:<{_INDENT - 2}}{detail}", (f"  {took}", "dim"))
            self._say(line)
        else:
            self._say(f"{event.name:<{_INDENT}}done in {took}")

    def _open_study(self, event: StudyReady) -> None:
        self._study = event
        self._training_started_at = self._round_started_at = self._clock()
        study, manifest = event.manifest.study, event.manifest
        self._say(
            f"{'study':<{_INDENT}}{count(len(study.sites), 'site')}, threshold {manifest.threshold}, "
            f"{study.privacy.trust} trust, {count(study.training.rounds, 'round')} in at most "
            f"{count(manifest.max_attempts, 'attempt')}"
        )
        if event.epsilon is None:
            self._warn_no_privacy()
        else:
            self._say(
                f"{'privacy':<{_INDENT}}ε = {up(event.epsilon)} at δ = {manifest.delta:g} for each "
                f"{study.privacy.unit}, over at most {count(manifest.max_attempts, 'attempt')}"
            )
        self._say(f"{'perplexity':<{_INDENT}}{number(event.perplexity_before)} on held-out text before training")

    def _tell(self, text: str) -> None:
        if self.console.quiet:
            print(text, file=sys.stderr)
        else:
            self._say(text)

    def _warn_no_privacy(self) -> None:
        if self.console.quiet:
            print(NO_PRIVACY, file=sys.stderr)
        elif self.console.is_terminal:
            self.console.print(no_privacy())
        else:
            self._say(NO_PRIVACY)

    def _close_round(self, event: RoundOutcome) -> None:
        now = self._clock()
        took, self._round_started_at = now - self._round_started_at, now
        self._rounds, self._exchanges = (*self._rounds, event), ()
        study = self._study
        if study is None:
            return
        planned = study.manifest.study.training.rounds
        seconds = duration(took)
        if event.committed:
            measured = "" if event.perplexity is None else f"perplexity {number(event.perplexity)}"
            became = self._participation(study.manifest, event).append(f"{measured:<17}")
            seconds += "" if self.console.is_terminal else f", {self._time_left(planned)}"
        else:
            became = Text(f"not finished: all {study.manifest.max_attempts} attempts are used up ")
        line = Text.assemble(
            f"{f'round {event.round:>{len(str(planned))}}/{planned}':<{_INDENT}}",
            became,
            f" {self._spent(event)}  ",
            (seconds, "dim"),
        )
        between = "\n" + " " * _INDENT if self.console.is_terminal else "; "
        for note in _notes(event):
            line.append(between)
            line.append(note, style="red")
        self._say(line)

    def _participation(self, manifest: Manifest, event: RoundOutcome) -> Text:
        """A mark for each site, or their number where there are too many sites for a line."""
        sites = [site.name for site in manifest.study.sites]
        if len(sites) > _BAR_WIDTH // 2:
            return Text(f"{len(event.survivors)} of {len(sites)} sites  ")
        return _marks(ANSWERED if site in event.survivors else DROPPED for site in sites).append("  ")

    def _spent(self, event: RoundOutcome) -> Text:
        if self._study is None or self._study.epsilon is None or event.epsilon_spent is None:
            return Text("NO PRIVACY", style="bold red")
        return Text(f"ε {up(event.epsilon_spent)} of {up(self._study.epsilon)}")

    def _continues(self, event: ExchangeClosed) -> bool:
        return bool(self._exchanges) and self._exchanges[-1].attempt == event.attempt

    def _say(self, line: Text | str) -> None:
        # Not wrapped where a program reads it.
        self.console.print(line, soft_wrap=not self.console.is_terminal, highlight=False)

    def _picture(self) -> RenderableType:
        """What is going on now; drawn many times a second from values that are replaced, never changed."""
        study, phase = self._study, self._phase
        if study is not None and (phase is None or phase.name == TRAINING):
            return Group("", self._headline(study), "", self._exchange_table(study.manifest), "", self._gauges(study))
        return Text("") if phase is None else self._phase_line(phase, self._progress)

    def _phase_line(self, phase: PhaseStarted, progress: PhaseProgress | None) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        elapsed = duration(self._clock() - self._phase_started_at)
        cells: list[RenderableType] = [self._spinner, Text(f"{phase.name:<{_INDENT - 3}}{phase.detail}")]
        if progress is not None:
            cells += [
                ProgressBar(total=max(progress.total, 1), completed=progress.done, width=_BAR_WIDTH // 2),
                Text(f"{progress.done}/{progress.total}"),
            ]
        line.add_row(*cells, Text(elapsed, style="dim"))
        return line

    def _headline(self, study: StudyReady) -> RenderableType:
        training = study.manifest.study.training
        attempt = self._exchanges[-1].attempt if self._exchanges else sum(len(r.outcomes) for r in self._rounds) + 1
        line = Table.grid(padding=(0, 1))
        line.add_row(
            self._spinner,
            Text.assemble(
                (f"round {min(len(self._rounds) + 1, training.rounds)} of {training.rounds}", "bold"),
                f" · attempt {attempt} of at most {study.manifest.max_attempts}",
                (f" · {self._time_left(training.rounds)}", "dim"),
            ),
        )
        return line

    def _time_left(self, planned: int) -> str:
        if not self._rounds:
            return f"{duration(self._clock() - self._training_started_at)} so far"
        a_round = (self._round_started_at - self._training_started_at) / len(self._rounds)
        in_this_round = self._clock() - self._round_started_at
        return f"about {duration(max(a_round * (planned - len(self._rounds)) - in_this_round, 0))} left"

    def _exchange_table(self, manifest: Manifest) -> RenderableType:
        """The exchanges of the attempt that is open, a row each, and what became of each site in them."""
        sites = [site.name for site in manifest.study.sites]
        named = sum(len(site) + 2 for site in sites) + _INDENT <= self.console.width
        table = Table.grid(padding=(0, 1))
        table.add_column(width=_INDENT - 1, style="dim")
        for _ in sites if named else ("",):
            table.add_column(justify="center" if named else "left")
        if named:
            table.add_row("", *(Text(site, style="dim") for site in sites))
        for exchange, row in zip(EXCHANGES.values(), self._exchange_marks(sites), strict=True):
            table.add_row(f"  {exchange}", *([_marks(mark) for mark in row] if named else [_marks(row)]))
        return table

    def _exchange_marks(self, sites: Sequence[str]) -> Iterator[str]:
        """For each exchange the marks of all sites, a character each; a space where a site had dropped out before."""
        present = set(sites)
        for position in range(len(EXCHANGES)):
            if position < len(self._exchanges):
                answered = self._exchanges[position].answered
                yield "".join((ANSWERED if s in answered else DROPPED) if s in present else " " for s in sites)
                present &= answered
            else:
                mark = AWAITED if position == len(self._exchanges) else AHEAD
                yield "".join(mark if site in present else " " for site in sites)

    def _gauges(self, study: StudyReady) -> RenderableType:
        gauges = Table.grid(padding=(0, 1))
        gauges.add_column(width=_INDENT - 1, style="dim")
        if study.epsilon is None:
            gauges.add_row("  privacy", Text("NO PRIVACY: training without noise", style="bold white on red"))
        else:
            spent = (self._rounds[-1].epsilon_spent or 0.0) if self._rounds else 0.0
            bar = ProgressBar(total=study.epsilon, completed=spent, width=_BAR_WIDTH)
            claim = f"ε {up(spent)} spent of {up(study.epsilon)} at δ = {study.manifest.delta:g}"
            gauges.add_row("  privacy", _beside(bar, claim))
        after = (closed.perplexity for closed in self._rounds)
        perplexities = [study.perplexity_before, *(perplexity for perplexity in after if perplexity is not None)]
        curve = Text(f"{sparkline(perplexities, _BAR_WIDTH):<{_BAR_WIDTH}}", style="cyan")
        gauges.add_row("  perplexity", _beside(curve, f"{number(perplexities[0])} → {number(perplexities[-1])}"))
        return gauges


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as blocks, from the lowest to the highest of them.

    >>> sparkline([54, 20, 9], 8)
    '█▃▁'
    """
    shown = [value for value in values if value < float("inf")][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_LEVELS[round((value - low) / span * (len(_LEVELS) - 1))] for value in shown)


def _marks(marks: Iterator[str] | str) -> Text:
    return Text.assemble(*((mark, _STYLES.get(mark, "")) for mark in marks))


def _notes(event: RoundOutcome) -> Iterator[str]:
    """What went wrong in a round, in the order in which it did."""
    for outcome in event.outcomes:
        for site, exchange in outcome.dropouts.items():
            yield f"{site} dropped out {DROPPED_WHEN[exchange]}"
        if not outcome.survivors:
            why = "too few sites stayed" if outcome.ended else "the server stopped in it"
            yield f"attempt {outcome.attempt} was lost: {why}"


def _beside(left: RenderableType, right: str) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_row(left, right)
    return row
