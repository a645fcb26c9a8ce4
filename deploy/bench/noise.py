"""What exact noise from a secret key costs beside numpy's normal, rounded."""

import time
from collections.abc import Callable

import numpy as np

from ...common.privacy.rounded_gaussian import add_rounded_gaussian

_REPETITIONS = 7


def bench_noise(*, count: int, stddev: int) -> dict[str, float]:
    """Draws of the rounded Gaussian a second on one thread, and the time they take over that of numpy's.

    Both add ``count`` integers of deviation ``stddev`` to the same vector. The two alternate, and the fastest of
    several repetitions counts. Returns draws_per_s and numpy_ratio (above 1: numpy is faster).
    """
    total = np.zeros(count, dtype=np.int64)
    generator = np.random.default_rng()

    def ours() -> None:
        add_rounded_gaussian(total, stddev)

    def numpys() -> None:
        total.__iadd__(np.rint(generator.normal(0.0, stddev, count)).astype(np.int64))

    times = [(_seconds(ours), _seconds(numpys)) for _ in range(_REPETITIONS)]
    ours_s, numpys_s = (min(column) for column in zip(*times, strict=True))
    return {"draws_per_s": count / ours_s, "numpy_ratio": ours_s / numpys_s}


def noise_line(figures: dict[str, float]) -> str:
    """The figures of ``bench_noise`` as one line.

    >>> noise_line({"draws_per_s": 21_300_000.0, "numpy_ratio": 1.25})
    'exact rounded Gaussian: 21.3 million draws/s, 1.25 x the time of numpy normal + rint'
    """
    millions = figures["draws_per_s"] / 1e6
    return (
        f"exact rounded Gaussian: {millions:.1f} million draws/s, "
        f"{figures['numpy_ratio']:.2f} x the time of numpy normal + rint"
    )


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
