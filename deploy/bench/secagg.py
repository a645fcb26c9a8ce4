"""What secure aggregation costs beside Flower's SecAgg+ and beside the machine's own speed, in one run."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.csprng import BLOCK_BYTES, Stream
from ...common.secagg.encoding import ModulusBits, residue_dtype
from ...common.secagg.masks import add_masks
from .secagg_attempt import BenchCohort, Clock, play_ours
from .secagg_memory import client_peak_bytes, server_peak_bytes

_WARM_UP = 1
_FLOOR_REPETITIONS = 15
# What one protocol makes of a cohort: the mean update [d] and the bytes a parameter that a site sends.
Play = Callable[[BenchCohort, Clock], tuple[NDArray[np.float64], float]]
# CPU seconds of a client and of the server by kind of work, and bytes a parameter.
Cost = tuple[dict[str, float], float]


@dataclass(frozen=True, kw_only=True)
class SecaggBench:
    """What is measured: one attempt of ``sites`` with updates of ``dimension`` numbers.

    ``dropouts`` sites deal shares and fall silent before their masked input, where losing them costs the server most.
    """

    sites: int
    dimension: int
    dropouts: int
    modulus_bits: ModulusBits
    repetitions: int = 3

    def run(self) -> dict[str, float]:
        """Ratios are Flower's cost over ours, on the same updates with the same threshold and dropouts.

        CPU is this process's, threads included, the least of the repetitions after one to warm up; a client's is the
        mean over those that last.

        - ``client_cpu_ratio``, ``server_cpu_ratio``: the cryptography that both do: keys and shares, masks, the sum of
          the inputs, removing the masks. Ours is an attempt less what sealing and opening its envelopes takes.
        - ``client_attempt_cpu_ratio``, ``server_attempt_cpu_ratio``: everything from the floats of an update to the
          floats of the mean, so also encoding them and putting arrays into bytes. Ours also hashes, signs and verifies
          every message, and Flower's functions authenticate nothing.
        - ``floor_ratio``: the time that AES-256-CTR takes for a mask and numpy for two memory passes (it reads one
          vector and writes another), over the time of adding a mask. AES is our own stream's, in blocks that stay in
          the cache; the bare cipher is 1 to 4 % faster.
        - ``bytes_per_parameter``: the masked-input envelope over d; ``flwr_bytes_per_parameter`` is Flower's arrays.
        - ``client_peak_bytes``, ``server_peak_bytes``: resident memory of a process of its own, interpreter and
          libraries included, from the floats of an update or to the floats of the mean.

        Beside these, the seconds that the ratios are made of. Raises StudyError if too few sites would be left, and
        RuntimeError if a sum is wrong.
        """
        from .flower_secagg import play_flower  # its libraries take a third of a second to load

        cohort = self._cohort()
        ours, bytes_per_parameter = self._cost(play_ours, cohort)
        flwr, flwr_bytes_per_parameter = self._cost(play_flower, cohort)
        figures: dict[str, float] = {}
        for side in ("client", "server"):
            cryptography_s = ours[side] - ours[f"{side}_authentication"]
            attempt_s = ours[side] + ours[f"{side}_encoding"]
            flwr_attempt_s = flwr[side] + flwr[f"{side}_encoding"]
            figures |= {
                f"{side}_cpu_ratio": flwr[side] / cryptography_s,
                f"{side}_attempt_cpu_ratio": flwr_attempt_s / attempt_s,
                f"{side}_cpu_s": cryptography_s,
                f"{side}_attempt_cpu_s": attempt_s,
                f"flwr_{side}_cpu_s": flwr[side],
                f"flwr_{side}_attempt_cpu_s": flwr_attempt_s,
            }
        return figures | {
            "floor_ratio": floor_ratio(dimension=self.dimension, modulus_bits=self.modulus_bits, masks=self.sites),
            "bytes_per_parameter": bytes_per_parameter,
            "flwr_bytes_per_parameter": flwr_bytes_per_parameter,
            "client_peak_bytes": client_peak_bytes(cohort),
            "server_peak_bytes": server_peak_bytes(cohort),
        }

    def attempt_cpu_s(self) -> dict[str, float]:
        """Ours alone: the CPU seconds of a client and of the server over a whole attempt."""
        ours, _ = self._cost(play_ours, self._cohort())
        return {side: ours[side] + ours[f"{side}_encoding"] for side in ("client", "server")}

    def _cohort(self) -> BenchCohort:
        return BenchCohort.fresh(
            sites=self.sites, dimension=self.dimension, dropouts=self.dropouts, modulus_bits=self.modulus_bits
        )

    def _cost(self, play: Play, cohort: BenchCohort) -> Cost:
        least: dict[str, float] = defaultdict(lambda: float("inf"))
        bytes_per_parameter = 0.0
        for repetition in range(_WARM_UP + self.repetitions):
            clock = Clock()
            mean, bytes_per_parameter = play(cohort, clock)
            cohort.check(mean)
            for work, seconds in clock.seconds.items():
                if repetition >= _WARM_UP:
                    parties = len(cohort.survivors) if work.startswith("client") else 1
                    least[work] = min(least[work], seconds / parties)
        return least, bytes_per_parameter


def floor_ratio(*, dimension: int, modulus_bits: ModulusBits, masks: int) -> float:
    """How near adding ``masks`` masks to a vector comes to what the machine can do; see ``SecaggBench.run``.

    Adding works on blocks that stay in a core's cache, so that the ratio may exceed 1 for vectors that do not.
    """
    vector = np.zeros(dimension, dtype=residue_dtype(modulus_bits))
    copy = np.empty_like(vector)
    block = memoryview(bytearray(BLOCK_BYTES))
    keys = [bytes([i % 256]) * 32 for i in range(masks)]

    def encrypt() -> None:
        for key in keys:
            stream = Stream(key)
            for start in range(0, vector.nbytes, BLOCK_BYTES):
                stream.fill(block[: vector.nbytes - start])

    def pass_twice() -> None:
        for _ in keys:
            np.copyto(copy, vector)

    times = [
        [_cpu_s(work) for work in (encrypt, pass_twice, lambda: add_masks(vector, plus=keys))]
        for _ in range(_FLOOR_REPETITIONS)
    ]
    encrypt_s, pass_twice_s, add_s = (min(column) for column in zip(*times, strict=True))
    return float((encrypt_s + pass_twice_s) / add_s)


def secagg_table(bench: SecaggBench) -> list[dict[str, float]]:
    """Whole attempts as rows, without Flower's: of 1, 4 and 16 times the dimension, then of fewer sites.

    ``client_ns`` is a client's time per number and site; it levels out where the work on the vector, linear in both,
    outweighs that on messages.
    """
    sizes = [(bench.sites, bench.dimension * times) for times in (1, 4, 16)]
    sizes += [(max(3, bench.sites // part), bench.dimension * 16) for part in (2, 4)]
    rows = []
    for sites, dimension in dict.fromkeys(sizes):
        attempt = SecaggBench(
            sites=sites,
            dimension=dimension,
            dropouts=min(bench.dropouts, 1 if sites > 3 else 0),
            modulus_bits=bench.modulus_bits,
            repetitions=bench.repetitions,
        )
        seconds = attempt.attempt_cpu_s()
        rows.append(
            {
                "sites": sites,
                "dimension": attempt.dimension,
                "dropouts": attempt.dropouts,
                "client_attempt_cpu_s": seconds["client"],
                "server_attempt_cpu_s": seconds["server"],
                "client_ns": seconds["client"] / (attempt.dimension * sites) * 1e9,
            }
        )
    return rows


def secagg_lines(figures: dict[str, float], bench: SecaggBench) -> str:
    """The figures of ``SecaggBench.run`` as a table."""

    def row(what: str, ratio: str, ours: str, flwr: str) -> str:
        return f"{what:<46}{figures[ours] * 1e3:>10.1f} ms {figures[flwr] * 1e3:>10.1f} ms {figures[ratio]:>8.1f} x"

    rows = [
        row(f"{side}: {what}", f"{side}{kind}_cpu_ratio", f"{side}{kind}_cpu_s", f"flwr_{side}{kind}_cpu_s")
        for kind, what in (("", "keys, shares, masks, sum"), ("_attempt", "with encoding and messages"))
        for side in ("client", "server")
    ]
    return "\n".join(
        [
            f"secure aggregation: {bench.sites} sites, {bench.dimension:,} numbers, {bench.dropouts} dropped out, "
            f"{bench.modulus_bits} bits; CPU beside Flower's SecAgg+",
            f"{'':<46}{'ours':>13} {'flwr':>13} {'ratio':>10}",
            *rows,
            "  Our messages are hashed, signed and verified; Flower's functions authenticate nothing.",
            f"masks: {figures['floor_ratio']:.2f} of the speed of AES-256-CTR and two memory passes",
            f"up: {figures['bytes_per_parameter']:.3f} bytes a number (flwr {figures['flwr_bytes_per_parameter']:.3f})",
            f"peak memory of the whole process: client {figures['client_peak_bytes'] / 1e6:,.0f} MB, "
            f"server {figures['server_peak_bytes'] / 1e6:,.0f} MB",
        ]
    )


def table_lines(rows: list[dict[str, float]]) -> str:
    """The rows of ``secagg_table`` for people."""
    lines = [
        f"{row['sites']:>6.0f} {row['dimension']:>12,.0f} {row['dropouts']:>8.0f} "
        f"{row['client_attempt_cpu_s'] * 1e3:>10.1f} ms {row['server_attempt_cpu_s'] * 1e3:>10.1f} ms "
        f"{row['client_ns']:>12.2f} ns"
        for row in rows
    ]
    head = (
        f"{'sites':>6} {'numbers':>12} {'dropouts':>8} {'client':>13} {'server':>13} {'client per number and site':>28}"
    )
    return "\n".join([head, *lines])


def _cpu_s(work: Callable[[], None]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s
