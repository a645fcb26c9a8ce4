"""Every example runs as it stands, and shows what it says."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from support.places import ROOT

from grandrounds.client.budget.patients import FingerprintKey
from grandrounds.deploy.verify.claims import CLAIMS
from grandrounds.server.report.rounding import up

EXAMPLES = ROOT / "deploy" / "examples"
SCRIPTS = ("own_data", "read_ledger", "study_in_python", "try_minimisation", "use_adapter", "write_policy")
LINES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a study which has ended."""
    folder = tmp_path_factory.mktemp("study")
    run("study_in_python", folder)
    return folder


def run(script: str, *arguments: Path) -> None:
    """Run a script as ``python script.py ARGUMENTS`` does, but with what other tests have loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")


def test_every_example_is_run_here_and_short() -> None:
    scripts = {path.stem: path.read_text("utf-8").count("\n") for path in EXAMPLES.glob("[!_]*.py")}
    assert set(scripts) == set(SCRIPTS)
    assert max(scripts.values()) <= LINES
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert [path.name for path in EXAMPLES.glob("[!_]*.[ip]*") if f"({path.name})" not in page] == []


def test_own_data_becomes_a_study(tmp_path: Path) -> None:
    run("own_data", tmp_path)
    assert json.loads((tmp_path / "study" / "report.json").read_bytes())["rounds"] == 4


def test_a_study_from_python_loses_a_site_and_says_so(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_bytes())
    assert [(row["round"], row["site"]) for row in report["dropouts"]] == [(2, "west")]


def test_the_ledger_tells_who_was_there_and_what_it_cost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("read_ledger", folder)
    said = capsys.readouterr().out
    assert "attempt 2, for round 2: the sum of north, east, south, coast; west was lost at masked-input\n" in said
    epsilon = json.loads((folder / "report.json").read_bytes())["epsilon"]
    assert f"5 noisy sums cost each patient at most ε = {up(epsilon)} at δ = 0.0005\n" in said
    assert said.endswith("claims: True\n")


def test_the_adapter_is_tried_and_merged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("use_adapter", folder)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Continuations(without=") and said[-1] == f"vllm serve {folder / 'merged'}"
    assert (folder / "merged" / "model.safetensors").is_file()


def test_rules_are_tried_on_notes_and_on_a_site_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("try_minimisation")
    first, second = capsys.readouterr().out.split("notes, row 2:\n")
    assert first.startswith("notes, row 1:\nSeen by [DOCTOR] on 202") and first.endswith(", MRN [NUMBER], BP 120/80.\n")
    assert "2024-03-07" not in first and "March 9, 2024" not in second and second.endswith("telephone [NUMBER].\n")
    (tmp_path / "site.toml").write_text('name = "north"\ndata = "notes.jsonl"\nmodel = "none"\n')
    (tmp_path / "policy.toml").write_text("[minimise]\nnumbers = true\n")
    FingerprintKey.make(tmp_path / "fingerprint.key")
    (tmp_path / "notes.jsonl").write_text('{"patient_id": 1, "text": "MRN 123456"}\n{"patient_id": 2, "text": ""}\n')
    run("try_minimisation", tmp_path)
    assert capsys.readouterr().out == "notes.jsonl, line 1:\nMRN [NUMBER]\n"


def test_a_policy_refuses_a_study_and_then_allows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("write_policy", folder)
    refused, allowed = capsys.readouterr().out.splitlines()
    assert "study.largest_epsilon is 0.5, and the study needs 2.0" in refused
    assert allowed == "[]"


def test_the_notebook_runs_from_top_to_bottom_and_holds_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads((EXAMPLES / "walkthrough.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102
    said = capsys.readouterr().out
    assert "2 [2, 3] ['north', 'south', 'west']" in said, "the attempt that was lost is made up for"
    assert said.count("agrees  ") == len(CLAIMS) - 2  # neither audit nor attacks are attached
    assert "The report is what follows from the ledger: it differs in attempts" in said
