"""The benchmark of a large adapter: a model that is small and wide, and the memory of every process by its kind."""

import subprocess
import sys
import tempfile

import pytest
from support.network.loopback import until

from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.deploy.bench.large_round import LargeRoundBench, large_round_table
from grandrounds.deploy.bench.process_memory import ProcessMemory
from grandrounds.deploy.bench.wide_model import RANK, TARGETS, wide_model

MEBI = 1 << 20
HOLDS = f"import sys; held = b'x' * (64 * {MEBI}); print(flush=True); sys.stdin.read()"


def test_a_wide_model_trains_as_many_numbers_as_were_asked_for(tmp_path):
    assert wide_model(tmp_path / "model", dimension=10_001) == 10_240
    model = LanguageModel.load(tmp_path / "model", Lora(target_modules=TARGETS, rank=RANK), seed=0)
    assert model.layout.dimension == 10_240


def test_the_peak_of_each_kind_of_process_is_that_of_the_largest():
    commands = [[sys.executable, "-c", code, " client worker ", "x"] for code in (HOLDS, HOLDS.replace("(64", "(1"))]
    processes = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for each in commands]
    with ProcessMemory(lambda: [process.pid for process in processes]) as memory:
        for process in processes:
            assert process.stdout and process.stdout.readline() == b"\n"
        until(lambda: memory.peaks.get("worker", 0) > 64 * MEBI, "the larger is seen")
        for process in processes:
            process.communicate()
    assert set(memory.peaks) == {"worker"}
    assert memory.peaks["worker"] < 128 * MEBI


@pytest.mark.soak
def test_a_large_adapter_reaches_every_site_and_no_process_holds_many_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    figures = LargeRoundBench(sites=3, rounds=2, dimension=10_000_000).run()
    assert figures["adapter_bytes"] > figures["update_bytes"] == 40_000_000
    carriers = {"SuperLink", "SuperNode", "gate", "relay"}
    assert set(figures["peak_bytes"]) == {*carriers, "executor", "server app", "worker"}
    assert all(figures["times_adapter"][kind] < 4 for kind in carriers), figures
    assert "server app" in large_round_table(figures)
