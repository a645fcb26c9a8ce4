import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from grandrounds.common.errors import GrandRoundsError
from grandrounds.deploy.cli.epsilon import epsilon
from grandrounds.deploy.cli.main import main

SCHEDULE = ["--noise-multiplier", "1", "--sampling-probability", "0.05", "--steps", "200", "--delta", "1e-5"]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(epsilon)
    return app


def test_json_has_the_two_figures_and_how_they_were_computed(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, [*SCHEDULE, "--json"], catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert set(figures) == {"epsilon", "epsilon_rdp", "accountant"}
    assert figures["epsilon"] == pytest.approx(4.7659, rel=1e-3)
    assert figures["epsilon_rdp"] > figures["epsilon"]


def test_overlap_under_distributed_trust_has_no_renyi_figure(app: typer.Typer) -> None:
    overlap = ["--sites-per-patient", "2", "--trust", "distributed", "--json"]
    assert json.loads(CliRunner().invoke(app, [*SCHEDULE, *overlap]).stdout)["epsilon_rdp"] is None
    overlap[3] = "local"
    assert json.loads(CliRunner().invoke(app, [*SCHEDULE, *overlap]).stdout)["epsilon_rdp"] > 4.8


def test_a_choice_among_runs_is_priced_for_who_sees_the_best_and_for_who_sees_all(app: typer.Typer) -> None:
    arguments = [*SCHEDULE, "--selected-from", "20"]
    figures = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert set(figures["selection"]) == {"of_best", "of_all", "gamma"}
    assert figures["epsilon_rdp"] < figures["selection"]["of_best"] < figures["selection"]["of_all"]
    shown = " ".join(CliRunner().invoke(app, arguments).stdout.split())
    assert "25.4" in shown and "for a site's budget, all runs count" in shown


def test_noise_that_changes_is_priced_by_its_stages_and_said(app: typer.Typer) -> None:
    stages = ["--noise-stage", "101:2", "--noise-stage", "151:1"]
    shown = " ".join(CliRunner().invoke(app, [*SCHEDULE, *stages]).stdout.split())
    assert "z = 1, from step 101 on 2 times it, from step 151 on 1 times it, delta" in shown
    assert "4.25" in shown, "150 of 200 steps at z = 1 alone cost 4.18"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--noise-stage=half"],
        ["--noise-stage=3:abc"],
        ["--noise-stage=:2"],
        ["--noise-stage=101:2", "--selected-from=20"],
    ],
)
def test_stages_that_cannot_be_read_or_priced_are_refused_with_a_diagnosis(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["grandrounds", "epsilon", *SCHEDULE, *wrong])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and wrong[0].split("=")[0] in said
    assert "Why it matters:" in said and "What to do:" in said


def test_without_json_it_is_a_table(app: typer.Typer) -> None:
    output = CliRunner().invoke(app, SCHEDULE, catch_exceptions=False).stdout
    assert "4.76" in output
    assert "PLD" in output


@pytest.mark.parametrize("position, value", [(1, "0"), (1, "nan"), (3, "1.5"), (5, "0"), (7, "0"), (7, "0.9")])
def test_a_value_out_of_range_is_refused_with_a_diagnosis(app: typer.Typer, position: int, value: str) -> None:
    arguments = list(SCHEDULE)
    arguments[position] = value
    with pytest.raises(GrandRoundsError) as refusal:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "What to do:" in refusal.value.diagnostics()


def test_an_unknown_trust_is_a_usage_error(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, [*SCHEDULE, "--trust", "blind"]).exit_code == 2
