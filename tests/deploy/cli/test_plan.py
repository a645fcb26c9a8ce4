"""The plan as its user meets it: figures, a study that runs as proposed, and what is refused."""

import io
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.study.tiny_models import save_tiny_model
from support.utility_rows import row

from grandrounds.client.training.grad_samples import Shape
from grandrounds.common.schema import validated
from grandrounds.common.study.completion import learning_rate_of
from grandrounds.common.study.study import Study
from grandrounds.deploy.bench.utility.row import RowFile
from grandrounds.deploy.cli.main import main
from grandrounds.deploy.plan.plan import Plan
from grandrounds.deploy.plan.trial import Trial
from grandrounds.deploy.simulation.config import read_simulation
from grandrounds.deploy.views.plan import print_plan

PUBLIC_TEXT = "A finding described in a textbook"
Run = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["grandrounds", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


def records(path: Path, *, patients: range = range(12)) -> Path:
    lines = (json.dumps({"patient_id": i, "text": f"{PUBLIC_TEXT} {i}"}) for i in patients)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_proposed_study_runs_as_planned(run: Run, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    text = records(tmp_path / "text.jsonl")
    held_out = records(tmp_path / "held-out.jsonl", patients=range(12, 16))
    sites = {"north": 12, "south": 11, "west": 10}
    proposed = tmp_path / "study.toml"
    arguments = [
        "plan",
        *(f"--nominal-units={site}={units}" for site, units in sites.items()),
        f"--model={model}",
        f"--public-text={text}",
        f"--output={proposed}",
        *("--rank=2", "--max-tokens=16", "--rounds=10", "--batch=30", "--target-epsilon=8", "--json"),
        *(f"--sweep={tmp_path / 'grid.toml'}", "--public-text-kind=public"),
    ]
    (tmp_path / "grid.toml").write_text("[training]\nlearning_rate = [1e-9, 0.01]\n")
    code, out, err = run(arguments)
    assert code == 0, err
    plan = json.loads(out)
    study = plan["study"]
    assert {site["name"]: site["nominal_units"] for site in study["sites"]} == sites
    assert plan["epsilon"] <= study["privacy"]["target_epsilon"] == 8
    assert sorted(plan["trial"]["norms"])[6] <= 1.1 * study["privacy"]["clipping_norm"]
    assert plan["hours"]["all_sites"][0] > 0
    assert [row["epsilon"] for row in plan["by_epsilon"]] == [1, 2, 4, 8, 10]
    tried = [(one["setting"]["training.learning_rate"], one["after"][0]) for one in plan["sweep"]["tried"]]
    assert tried == sorted(tried, key=lambda one: one[1])
    assert {rate for rate, _ in tried} == {1e-9, 0.01}
    assert study["training"]["learning_rate"] == tried[0][0]
    assert f"training.learning_rate = {tried[0][0]}." in proposed.read_text(encoding="utf-8").split("[about]")[0]
    assert PUBLIC_TEXT not in out + err + proposed.read_text(encoding="utf-8")
    code, out, err = run(
        [
            "simulate",
            f"--config={proposed}",
            *(f"--data={site}={text}" for site in sites),
            f"--evaluation={held_out}",
            "--evaluation-kind=public",
            f"--output={tmp_path / 'results'}",
            "--json",
        ]
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["epsilon"] == plan["epsilon"]
    assert report["noise_multiplier"] == study["privacy"]["noise_multiplier"]
    assert report["max_attempts"] == 12
    # A study that people may have edited stays.
    code, _, err = run(arguments)
    assert code == 1
    assert f"{proposed} exists" in err


def test_without_a_model_a_built_in_study_is_planned_with_its_defaults(run: Run, tmp_path: Path) -> None:
    proposed = tmp_path / "study.toml"
    measured = RowFile.create(tmp_path / "rows.jsonl")
    for seed, after in enumerate((12.1, 10.0, 8.1, 6.6)):
        measured.add(row("distributed", after, seed=seed, patients=60 * 2**seed, noise_over_claimed=1.118))
        measured.add(row("distributed", 99.0, seed=seed, patients=60, epsilon=1.0))
    quality = [f"--results={measured.path}", "--quality=9"]
    code, out, err = run(["plan", "--no-benchmark", f"--output={proposed}", *quality])
    assert code == 0, err
    needed = re.search(r"Perplexity 9 at ε = 4: about (\d+) patients \((\d+) to (\d+)\)", out)
    assert needed is not None and "By 4 runs" in out
    expected = re.search(r"Perplexity to expect at ε = 4: about (\S+) \((\S+) to (\S+)\)", out)
    assert expected is not None and float(expected[2]) < float(expected[1]) < float(expected[3]) < 11
    line, low, high = map(int, needed.groups())
    assert 120 < low < line < high < 240
    code, _, err = run(["plan", "--no-benchmark", quality[1]])
    assert code == 1 and "--quality is given without --results" in err
    for part in (
        "z = 1.2799",
        "q = 0.6",
        "C = 0.3",
        "4, in at most 5",
        "h = 3",
        "4 1 1.12 1.15 1.15",
        "at best",
        "Φ(−1/",
    ):
        assert part in " ".join(out.split())
    study, simulation = read_simulation(tomllib.loads(proposed.read_text(encoding="utf-8")))
    assert study.privacy.noise_multiplier is None
    assert study.sites == tuple(site.model_copy(update={"max_units": 30}) for site in read_simulation({})[0].sites)
    assert simulation.builtin_sites == 5


@pytest.mark.parametrize(
    ("privacy", "is_open"),
    [
        ("", True),
        ("target_epsilon = 1.0", True),
        ("noise_multiplier = 3.0", True),
        ("[training]\nlearning_rate = 0.5", False),
        ('[training]\noptimizer = "adam"', False),
    ],
)
def test_what_is_planned_is_read_back_with_its_rate_whether_that_follows_or_is_stated(
    privacy: str, is_open: bool, run: Run, tmp_path: Path
) -> None:
    config, proposed = tmp_path / "config.toml", tmp_path / "study.toml"
    config.write_text(f"[privacy]\n{privacy}\n")
    code, out, err = run(["plan", "--no-benchmark", f"--config={config}", f"--output={proposed}", "--json"])
    assert code == 0, err
    study, _ = read_simulation(tomllib.loads(proposed.read_text(encoding="utf-8")))
    assert (study.training.learning_rate is None) == is_open
    assert learning_rate_of(study) == json.loads(out)["study"]["training"]["learning_rate"]


def test_the_page_says_where_norms_come_from_and_what_the_noise_does() -> None:
    fields: dict[str, Any] = {
        "privacy": {"noise_multiplier": 12.0, "trust": "local", "delta": 1e-4},
        "training": {"rounds": 20},
        "sites": [{"name": f"site-{number}", "nominal_units": 20} for number in range(4)],
    }
    trial = Trial(
        source="a public corpus",
        norms=(0.2, 0.5, 0.9),
        dimension=1234,
        shapes=(Shape(64, 4),),
        batch_s=90.0,
    )
    console = Console(width=200, record=True, file=io.StringIO())
    plan = Plan.of(validated(Study, fields), trial, epsilons=[2.0])
    print_plan(console, plan, written=None)
    text = " ".join(console.export_text().split())
    for part in (
        "a public corpus",
        "0.35 (25th percentile), 0.5 (50th), 0.7 (75th)",
        "1,234 numbers",
        "each site adds all of it",
        "the noise rules",
        "Warning: The noise rules",
        "One more site",
        "3 h 0 min for the planned rounds",  # 20 rounds, 4 sites, a batch and a half each
    ):
        assert part in text
    assert "grandrounds simulate" not in text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--nominal-units=north"], "SITE=N"),
        (["--nominal-units=20", "--nominal-units=30"], "SITE=N"),
        (["--nominal-units=north=20", "--nominal-units=south=20"], "sites"),
        (["--sites=4", *(f"--nominal-units={site}=20" for site in ("north", "south", "west"))], "--sites 4"),
        (["--nominal-units=0"], "nominal_units"),
        (["--delta=0.05"], "privacy.delta"),
        (["--threshold=3"], "secagg.threshold"),
        (["--target-epsilon=1000"], "privacy.target_epsilon"),
        (["--target-epsilon=0.01", "--max-attempts=200000", "--batch=120"], "0.01"),
        (["--batch=1000"], "1000"),
        (["--config=missing.toml"], "missing.toml"),
    ],
)
def test_nonsense_is_refused_with_a_diagnosis(options: list[str], named: str, run: Run) -> None:
    code, out, err = run(["plan", "--no-benchmark", *options])
    assert (code, out) == (1, "")
    assert named in err
    assert "Why it matters: " in err
    assert "What to do: " in err


def test_too_few_sites_are_a_usage_error(run: Run) -> None:
    assert run(["plan", "--sites=2"])[0] == 2
