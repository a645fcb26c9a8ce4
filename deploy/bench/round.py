"""What a round of a deployment takes, beside empty messages that Flower carries and beside the simulation."""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ...common.study.study import read_study
from ...server.rounds.training import ExchangeClosed, RoundOutcome
from ...server.run.progress import PhaseStarted
from ...server.run.progress_file import Told
from ..server_ops import follow as server_run
from ..simulation.simulate import simulate
from .loopback import LoopbackFederation
from .stock_nodes import StockNodes

_SPARE_ATTEMPTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class RoundBench:
    """What is measured: ``rounds`` of ``sites`` hospitals, each of whose programs runs on this machine.

    ``trips`` empty messages go to as many stock nodes before the study, and as many after it.
    """

    sites: int
    rounds: int
    trips: int = 5

    def run(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Seconds of a round, of each of its exchanges, and of what they are compared with.

        - ``median_round_s``: from the end of the round before, the server's own work at its end included.
        - ``exchange_s``: by its name, the median from the end of the exchange before: the server writes its messages,
          every site answers, and the server has taken the answers. ``median_exchange_s`` is that of all.
        - ``empty_round_trip_s``: the median until every one of as many nodes has answered an empty message by Flower's
          own executor and an app that does nothing.
        - ``exchange_ratio``: median_exchange_s over empty_round_trip_s.
        - ``exchanges_per_round``: five, and more where an attempt failed.
        - ``in_process_round_s``: the median in the simulation of the same study on the same records.

        It is one SuperLink behind one gate in one run, and all nodes are connected throughout: while the one kind is
        measured, the other asks for messages and gets none. Empty messages go before and after the study, so that a
        machine that slows down slows both. The very first, for which nodes unpack the app, does not count, nor does
        signing, in which sites get ready. Both ServerApps look for answers every 0.2 s. The study's exchanges bear
        their cryptography and writing to disk, and the empty messages nothing. The model is ``tiny``: what is left to
        see is the machinery, and not the training. The simulation runs when all else has ended.

        Raises StudyError, also with what ended the study, and leaves no process and no file behind.
        """
        with tempfile.TemporaryDirectory(prefix="grandrounds-bench-") as folder:
            names = [f"site-{number}" for number in range(1, self.sites + 1)]
            attempts = self.rounds + _SPARE_ATTEMPTS
            say(f"preparing a study of {self.sites} sites")
            federation = LoopbackFederation(Path(folder), sites=names, rounds=self.rounds, max_attempts=attempts)
            trips, deployed = self._deployed(federation, say)
            say("the same rounds in one process")
            simulated = _simulated(federation)
        exchanges = [seconds for times in deployed.exchanges_s.values() for seconds in times]
        exchange_s, trip_s = statistics.median(exchanges), statistics.median(trips)
        return {
            "median_round_s": statistics.median(deployed.rounds_s),
            "in_process_round_s": statistics.median(simulated.rounds_s),
            "exchange_s": deployed.medians,
            "median_exchange_s": exchange_s,
            "empty_round_trip_s": trip_s,
            "exchange_ratio": exchange_s / trip_s,
            "exchanges_per_round": len(exchanges) / len(deployed.rounds_s),
        }

    def _deployed(self, federation: LoopbackFederation, say: Callable[[str], None]) -> tuple[list[float], "RoundTimes"]:
        """Seconds of every empty trip, and the times of the study between them."""
        stock = StockNodes(server=federation.folder, path=federation.path, count=self.sites)
        with ExitStack() as ending:
            ending.callback(federation.stop)
            ending.callback(stock.stop)
            say(f"starting server and sites, and {self.sites} stock nodes")
            federation.start()
            stock.start()
            say(f"{self.trips} empty round trips")
            before = stock.trips(self.trips)
            say(f"{self.rounds} rounds of the study")
            timed = [(datetime.now(UTC), event) for event in server_run.run(federation.folder)]
            say(f"{self.trips} empty round trips")
            after = stock.trips(self.trips)
        return before + after, RoundTimes.of(timed)


@dataclass(frozen=True, kw_only=True)
class RoundTimes:
    """Seconds of each round and, by its name, of each exchange."""

    rounds_s: list[float] = field(default_factory=list)
    exchanges_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def medians(self) -> dict[str, float]:
        """Of each exchange, by its name."""
        return {name: statistics.median(times) for name, times in self.exchanges_s.items()}

    @classmethod
    def of(cls, timed: Iterable[tuple[datetime, Told]]) -> "RoundTimes":
        """The times of a training whose events are given, each with when it was told."""
        times = cls()
        for at, event in timed:
            match event:
                case PhaseStarted(name="training"):
                    round_began = exchange_began = at
                case ExchangeClosed(exchange=exchange):
                    times.exchanges_s[exchange].append((at - exchange_began).total_seconds())
                    exchange_began = at
                case RoundOutcome():
                    times.rounds_s.append((at - round_began).total_seconds())
                    round_began = exchange_began = at
        return times


def _simulated(federation: LoopbackFederation) -> RoundTimes:
    """The times of the federation's study in this process, on the same records."""
    timed: list[tuple[datetime, Told]] = []
    simulate(
        read_study(federation.folder.study_toml),
        {site: federation.records(site) for site in federation.sites},
        evaluation=federation.evaluation,
        output=federation.path / "simulated",
        observe=lambda event: timed.append((datetime.now(UTC), event)),
    )
    return RoundTimes.of(timed)


def round_table(figures: dict[str, Any], bench: RoundBench) -> str:
    """The figures of ``RoundBench.run`` for people."""
    trip_s = figures["empty_round_trip_s"]
    rows: Sequence[tuple[str, float]] = [*figures["exchange_s"].items(), ("any of them", figures["median_exchange_s"])]
    return "\n".join(
        [
            f"a round of {bench.sites} sites on one machine: {figures['median_round_s']:.2f} s, in "
            f"{figures['exchanges_per_round']:.3g} exchanges (median of {bench.rounds}); "
            f"in one process {figures['in_process_round_s'] * 1e3:.0f} ms",
            f"there and back through Flower, empty and unpacked at the nodes: {trip_s:.2f} s",
            f"{'exchange':<16}{'seconds':>8}{'of an empty one':>17}",
            *(f"{name:<16}{seconds:>8.2f}{seconds / trip_s:>17.2f}" for name, seconds in rows),
        ]
    )
