import math

import pytest
from tiny_models import TARGETS, VOCABULARY, save_tiny_model

from grandrounds.common.language_model import Lora
from grandrounds.deploy.bench.dp_step import StepBench, step_line


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"))
    lora = Lora(target_modules=TARGETS["llama"], rank=2)
    return StepBench(folder=folder, lora=lora, batch_size=32, max_tokens=64, repetitions=1)


def test_every_kind_of_step_runs_and_trains(bench):
    for kind in ("plain", "private", "opacus"):
        assert bench.peak_bytes(kind) > 0


def test_the_figures_are_ratios_with_the_step_without_privacy(bench):
    figures = bench.run()
    assert {"time_ratio", "memory_ratio", "opacus_time_ratio", "opacus_memory_ratio"} <= set(figures)
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    assert figures["step_bytes"] > bench.batch_size * bench.max_tokens * VOCABULARY * 4, (
        "the logits alone are this much"
    )
    assert "Opacus" in step_line(figures)
