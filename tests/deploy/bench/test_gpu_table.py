from typing import Any

import pytest
import torch
from gpu import run

KIND = {"step_s": 1.0, "step_bytes": 1 << 30, "tokens_per_s": 4096.0, "utilisation": 0.4}
PRIVATE = KIND | {"time_ratio": 1.07, "memory_ratio": 1.02}


def report(**private: Any) -> dict[str, Any]:
    row = {"model": "random:1b", "precision": "bfloat16", "tokens": 512, "noise": False}
    kinds = {"without privacy": KIND, "private": PRIVATE | private, "Opacus, hooks": {"failed": "out of memory"}}
    rows = [row | {"kinds": kinds}, row | {"precision": "nf4", "failed": "bitsandbytes is not installed"}]
    return {"machine": "NVIDIA H200", "versions": {"torch": "2.13.0", "opacus": None}, "tests": {}, "rows": rows}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for ten minutes")
def test_without_a_gpu_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEVICE", raising=False)
    assert run.main() == 1
    assert "no GPU can be used here" in capsys.readouterr().out


def test_the_page_says_what_failed_what_is_missing_and_what_exceeds_its_aim() -> None:
    page = run.page(report())
    assert "| random:1b | bfloat16 | 512 | Opacus, hooks | out of memory |" in page
    assert "| random:1b | nf4 | 512 | all | bitsandbytes is not installed |" in page
    assert "opacus not installed" in page
    assert "512 tokens: time 1.07 ×." in page
    assert "No noise was drawn" in page
    assert "Above the aim" not in run.page(report(time_ratio=1.05))
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1, page


def test_what_matters_most_is_measured_first() -> None:
    assert next(run.configurations(["1b", "7b"])) == ("random:1b", "bfloat16", "512")
    assert len(list(run.configurations(["1b", "7b"]))) == 8
