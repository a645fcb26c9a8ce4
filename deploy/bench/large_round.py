"""What a deployment with a large adapter takes: seconds of each exchange, and memory of each process."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ...common.study.artefacts import WEIGHTS
from ...server.run.progress import PhaseEnded
from ..server_ops import follow as server_run
from .loopback import LoopbackFederation, descendants
from .process_memory import ProcessMemory
from .round import RoundTimes

_SPARE_ATTEMPTS: Final = 3
_DEADLINE_S: Final = 600.0
_WITH_THE_MODEL: Final = ("worker", "server app")


@dataclass(frozen=True, kw_only=True)
class LargeRoundBench:
    """What is measured: a study of ``sites`` hospitals whose adapter trains ``dimension`` numbers, on this machine.

    Beside it, in the same way, the same study with an adapter of a few hundred numbers: what the programs take empty.
    """

    sites: int
    rounds: int
    dimension: int

    def run(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Seconds and bytes.

        - ``adapter_bytes``: the file of the finished adapter; ``update_bytes``: a site's masked update.
        - ``exchange_s``: the median of each exchange, from the end of the one before; ``closing_s``: until every site
          has what the study leaves, and has signed it.
        - ``peak_bytes`` and ``empty_peak_bytes``: by kind of process, the most that one of the kind ever held, with the
          large adapter and with the small one.
        - ``model_bytes``: of what computes with the model, the base and the adapter on it.
        - ``times_adapter``: by kind of process, their difference over adapter_bytes, without the model.

        Raises StudyError, also with what ended the study, and leaves no process and no file behind.
        """
        say("a study with an adapter of a few hundred numbers, for comparison")
        empty = self._measured(None)["peak_bytes"]
        say(f"the same study with {self.dimension} numbers")
        measured = self._measured(self.dimension)
        model = dict.fromkeys(_WITH_THE_MODEL, measured["model_bytes"])
        beyond = {kind: peak - empty[kind] - model.get(kind, 0) for kind, peak in measured["peak_bytes"].items()}
        return {
            **measured,
            "empty_peak_bytes": empty,
            "times_adapter": {kind: more / measured["adapter_bytes"] for kind, more in beyond.items()},
        }

    def _measured(self, dimension: int | None) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="grandrounds-bench-") as folder, ExitStack() as ending:
            federation = LoopbackFederation(
                Path(folder),
                sites=[f"site-{number}" for number in range(1, self.sites + 1)],
                rounds=self.rounds,
                max_attempts=self.rounds + _SPARE_ATTEMPTS,
                deadline_s=_DEADLINE_S,
                dimension=dimension,
            )
            ending.callback(federation.stop)
            federation.start()
            running = federation.processes.values()
            with ProcessMemory(lambda: [pid for process in running for pid in descendants(process.pid)]) as memory:
                timed = [(datetime.now(UTC), event) for event in server_run.run(federation.folder)]
            closing = [event for _, event in timed if isinstance(event, PhaseEnded) and event.name == "closing"]
            return {
                "model_bytes": 4 * federation.bundle.manifest.dimension
                + sum(file.stat().st_size for file in Path(folder).glob("model/*.safetensors")),
                "adapter_bytes": (federation.folder.study.path / WEIGHTS).stat().st_size,
                "update_bytes": federation.bundle.manifest.secagg_parameters.update_bytes,
                "exchange_s": RoundTimes.of(timed).medians,
                "closing_s": sum(event.seconds for event in closing),
                "peak_bytes": memory.peaks,
            }


def large_round_table(figures: dict[str, Any]) -> str:
    """The figures of ``LargeRoundBench.run`` for people."""
    mebi = 1 << 20
    seconds = ", ".join(f"{name} {taken:.1f}" for name, taken in figures["exchange_s"].items())
    return "\n".join(
        [
            f"a finished adapter of {figures['adapter_bytes'] / mebi:.1f} MiB, updates of "
            f"{figures['update_bytes'] / mebi:.1f} MiB; the model with it, of {figures['model_bytes'] / mebi:.1f} MiB, "
            f"is in {' and '.join(_WITH_THE_MODEL)}, and not counted below",
            f"seconds of an exchange (median): {seconds}; closing {figures['closing_s']:.1f}",
            f"{'peak memory':<16}{'MiB':>8}{'empty':>8}{'× adapter':>11}",
            *(
                f"{kind:<16}{peak / mebi:>8.0f}{figures['empty_peak_bytes'][kind] / mebi:>8.0f}"
                f"{figures['times_adapter'][kind]:>11.1f}"
                for kind, peak in sorted(figures["peak_bytes"].items())
            ),
        ]
    )
