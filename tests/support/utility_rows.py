"""Rows of the benchmark of utility, as runs would leave them."""

from pathlib import Path
from typing import Any

from grandrounds.deploy.bench.utility.row import Row, RowFile
from grandrounds.deploy.bench.utility.ways import Way


def row(way: Way, after: float | None, *, seed: int = 1, **changed: Any) -> Row:
    """What a run from perplexity 20 came to."""
    fields = {
        "way": way,
        "epsilon": None if way == "noise-off" else 4.0,
        "sites": 5,
        "patients": 120,
        "split": "iid",
        "seed": seed,
        "settings": "ab" * 32,
        "noise_over_claimed": None if way == "noise-off" else 1.0,
        "stated": {"training": {"learning_rate": 2.4}},
        "rounds": 4,
        "noise_multiplier": None,
        "perplexity_before": 20.0,
        "perplexity_after": after,
        "f1_before": 0.5,
        "f1_after": 0.75,
        "manifest": None,
        "ledger": None,
        "verified": None,
        "seconds": 60.0,
        "version": "0.1.0",
        "program": "cd" * 32,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Row.model_validate({**fields, **changed})


def written_down(*names: str) -> list[Row]:
    """The rows of ``tests/results``, of files of these names."""
    results = Path(__file__).parents[1] / "results"
    return [found for name in names for found in RowFile(results / f"{name}.jsonl").read()]
