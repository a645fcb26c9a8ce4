"""The step that is measured is a real one of each kind."""

import pytest
from tiny_models import TARGETS, VOCABULARY, save_tiny_model

from grandrounds.common.language_model import Lora
from grandrounds.deploy.bench.dp_step import StepBench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"))
    lora = Lora(target_modules=TARGETS["llama"], rank=2)
    return StepBench(folder=folder, lora=lora, batch_size=32, max_tokens=64, repetitions=1)


def test_every_kind_of_step_needs_at_least_the_memory_of_its_logits(bench):
    for kind in ("plain", "private", "opacus"):
        assert bench.peak_bytes(kind) > bench.batch_size * bench.max_tokens * VOCABULARY * 4
