"""The benchmark command prints what it measured, for people and for machines."""

import json
import math
import sys
from multiprocessing import forkserver
from typing import Any

import pytest

from grandrounds.deploy.bench.attacks import AttackBench, Tell
from grandrounds.deploy.bench.steps.dp_step import step_table
from grandrounds.deploy.cli.main import main

TINY_VOCABULARY = 257


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["grandrounds", "bench", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    return capsys.readouterr().out


def test_the_noise_benchmark_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(run(["noise", "--count=100000", "--json"], monkeypatch, capsys))
    assert figures["draws_per_s"] > 0
    assert figures["numpy_ratio"] > 0


@pytest.fixture
def no_forkserver() -> None:
    """As for a command: one that another test had started would not have loaded the libraries."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_forkserver")
def test_the_step_benchmark_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["dp-step", "--model=tiny", "--tokens=64", "--batch=32", "--records=64", "--repetitions=1", "--json"]
    figures = json.loads(run(arguments, monkeypatch, capsys))
    kinds = figures["kinds"]
    assert list(kinds) == ["without privacy", "private", "Opacus, ghost clipping", "Opacus, hooks"]
    for kind in kinds.values():
        assert kind["utilisation"] is None, "nobody knows what these processors promise"
        assert all(math.isfinite(figure) and figure > 0 for name, figure in kind.items() if name != "utilisation")
    assert kinds["private"]["step_bytes"] > 32 * 64 * TINY_VOCABULARY * 4, "the logits alone are this much"
    kinds["Opacus, hooks"] = {"failed": "out of memory"}
    table = step_table({**figures, "noise": False})
    assert "64 x 64 tokens, 32 at a time" in table
    assert "out of memory" in table
    assert "no noise was drawn" in table


def test_the_secagg_benchmark_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["secagg", "--sites=4", "--dimension=5000", "--dropouts=1", "--modulus-bits=32", "--repetitions=1"]
    figures = json.loads(run([*arguments, "--json"], monkeypatch, capsys))
    assert {"client_cpu_ratio", "server_cpu_ratio", "floor_ratio", "client_peak_bytes"} <= figures.keys()
    assert all(figure > 0 for figure in figures.values())


def test_the_secagg_benchmark_prints_a_table_of_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "1,600" in run(["secagg", "--sites=4", "--dimension=100", "--table", "--repetitions=1"], monkeypatch, capsys)


def test_the_accountant_benchmark_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["accountant", "--sites=5", "--rounds=4", "--identical=100", "--json"]
    figures = json.loads(run(arguments, monkeypatch, capsys))
    assert {"heterogeneous_s", "homogeneous_s"} <= figures.keys()
    assert figures["epsilon_fine"] <= figures["epsilon"] * (1 + 1e-9)
    assert figures["epsilon"] <= figures["epsilon_fine"] * 1.01


def test_the_attacks_benchmark_tells_on_standard_error_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(self: AttackBench, tell: Tell) -> dict[str, Any]:
        tell("private: training")
        assert capsys.readouterr().err.endswith("loading PyTorch …\nprivate: training …\n"), "it is told at once"
        return {}

    monkeypatch.setattr(AttackBench, "run", begin)
    assert json.loads(run(["attacks", "--json"], monkeypatch, capsys)) == {"rows": {}}


def test_a_benchmark_says_in_words_beside_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "numpy" in run(["noise", "--count=100000"], monkeypatch, capsys)
