"""Ten thousand, a hundred thousand and a million notes of 300 words: prepared, opened and drawn within their bounds."""

import sys

from grandrounds.deploy.bench.data import TABLE, DataBench, data_line
from grandrounds.deploy.builtin.models import base_model_folder

LEAST_RATIO = 0.7
MOST_BYTES, MOST_WORKER_BYTES = 1.5 * 2**30, 500 * 2**20
MOST_OPEN_S, MOST_DRAW_S = 5.0, 0.05


def main() -> int:
    """Print a line for each; 1 where one is beyond a bound."""
    within = True
    for notes in TABLE:
        figures = DataBench(base=base_model_folder("builtin"), notes=notes).run()
        print(data_line(figures), flush=True)
        within &= figures["prepare_ratio"] >= LEAST_RATIO and figures["prepare_peak_bytes"] <= MOST_BYTES
        within &= figures["worker_peak_bytes"] <= MOST_WORKER_BYTES
        within &= figures["open_s"] <= MOST_OPEN_S and figures["draw_s"] <= MOST_DRAW_S
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
