"""A sweep on public records: the study's own noise, ranked by what was held out, and refused on records of care."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.study.tiny_models import save_tiny_model
from typer.testing import CliRunner

from grandrounds.common.errors import DataError, GrandRoundsError, StudyError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.schema import known, validated
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.step import mean_gradient
from grandrounds.common.study.study import Study
from grandrounds.deploy.builtin.spares import with_setting
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.plan.first_adapter import prepare
from grandrounds.deploy.plan.grid import Grid, require_public
from grandrounds.deploy.plan.sweep import Sweep, Tried, _Public, sweep
from grandrounds.deploy.simulation.config import read_simulation
from grandrounds.deploy.views.sweep import print_sweep

NO_NOISE = {"noise": False, "target_epsilon": None}
SITES = ("north", "south", "west")
NAMED = "Mr Public of Exampleton"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public(tmp_path_factory.mktemp("text") / "terms.jsonl", patients=25)


def public(path: Path, *, patients: int) -> Path:
    rows = ({"patient_id": f"term {number}", "text": f"{NAMED}, {number}"} for number in range(patients))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def a_study(base: Path, *, units: int = 4, **tables: Any) -> Study:
    fields: dict[str, Any] = {
        "model": {"name": str(base), "target_modules": ["q_proj", "v_proj"], "rank": 2},
        "data": {"max_tokens": 24},
        "privacy": {"target_epsilon": 8.0, "sampling_probability": 1, "clipping_norm": 1.0},
        "training": {"rounds": 2, "optimizer": "sgd"},
    }
    sites = [{"name": name, "nominal_units": units} for name in SITES]
    return validated(Study, {name: table | tables.get(name, {}) for name, table in fields.items()} | {"sites": sites})


def test_settings_are_ranked_by_what_they_do_to_records_that_were_held_out(base: Path, text: Path) -> None:
    grid = Grid(training={"learning_rate": (100.0, 1e-6)}, repeats=2)
    told: list[str] = []
    found = sweep(a_study(base), grid, text, tell=told.append)
    assert (found.trained, found.held_out, found.source) == (20, 5, "terms.jsonl")
    perplexities = [one.perplexity for one in found.tried]
    assert perplexities == sorted(perplexities)
    by_rate = {one.setting["training.learning_rate"]: one for one in found.tried}
    assert by_rate[1e-6].after == pytest.approx(by_rate[1e-6].before, rel=1e-3)
    assert by_rate[100.0].perplexity > 1.05 * by_rate[1e-6].perplexity
    assert by_rate[100.0].before == by_rate[1e-6].before, "the settings begin alike"
    assert len(set(by_rate[100.0].after)) == 2, "and each run has noise of its own"
    assert found.best.study.training.learning_rate == found.best.setting["training.learning_rate"]
    assert NAMED not in " ".join(told) + json.dumps(found.figures) + found.chosen


def test_every_setting_is_calibrated_for_the_study_s_epsilon(base: Path, text: Path) -> None:
    found = sweep(a_study(base), Grid(training={"rounds": (1, 4), "learning_rate": (1.0,)}), text)
    noise = {one.study.training.rounds: one.noise_multiplier for one in found.tried}
    for rounds, noise_multiplier in noise.items():
        planned = complete_study(a_study(base, training={"rounds": rounds, "learning_rate": 1.0}))
        assert noise_multiplier == planned.privacy.noise_multiplier
    assert noise[4] > noise[1]


def builtin(base: Path, *, rounds: int, **privacy: Any) -> Study:
    """As `plan` has it where nothing is said of sites, attempts and noise: attempts beyond the rounds have more."""
    of = a_study(base).model_dump(include={"model", "data"}, exclude_unset=True)
    training = {"rounds": rounds, "optimizer": "sgd"}
    study, _ = read_simulation({**of, "privacy": {"target_epsilon": 4.0, **privacy}, "training": training})
    return study


def test_spare_attempts_of_a_setting_are_those_beyond_its_own_rounds(base: Path, text: Path) -> None:
    study = builtin(base, rounds=4)
    assert study.privacy.noise_stages == ((5, 2.0),)
    found = sweep(study, Grid(training={"rounds": (4, 8, 2)}), text)
    for one in found.tried:
        rounds = one.setting["training.rounds"]
        asked = complete_study(builtin(base, rounds=rounds))
        assert one.study.privacy.noise_stages == asked.privacy.noise_stages == ((rounds + 1, 2.0),)
        assert one.noise_multiplier == asked.privacy.noise_multiplier
    assert found.best.study.privacy.noise_stages, "and the plan has them"


def test_stages_that_a_study_or_a_setting_states_stay_as_they_are(base: Path) -> None:
    stated = with_setting(builtin(base, rounds=4, noise_stages=[[5, 2.0]]), {"training.rounds": 8})
    assert stated.privacy.noise_stages == ((5, 2.0),)
    derived = builtin(base, rounds=4)
    assert with_setting(derived, {"privacy.noise_stages": (), "training.rounds": 8}).privacy.noise_stages == ()
    assert with_setting(derived, {"training.max_attempts": 4}).privacy.noise_stages == (), "no attempt is to spare"
    twice = with_setting(with_setting(derived, {"training.learning_rate": 1.0}), {"training.rounds": 8})
    assert twice.privacy.noise_stages == ((9, 2.0),)


def test_a_setting_that_cannot_be_calibrated_or_begun_is_refused_before_another_is_trained(
    base: Path, text: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    staged = builtin(base, rounds=4, noise_stages=[[5, 2.0]])
    with pytest.raises(StudyError, match="one begins with attempt 5, and there are 3"):
        sweep(staged, Grid(training={"rounds": (4, 2)}), text, tell=told.append)
    first = tmp_path / "first.safetensors"
    first.write_bytes(prepare(a_study(base), text, said="terms").first.data)
    of_rank_2 = a_study(base, model={"first_adapter": str(first)})
    with pytest.raises(StudyError, match="made for another adapter"):
        sweep(of_rank_2, Grid(model={"rank": (2, 3)}), text, tell=told.append)
    assert told and not [line for line in told if line.startswith("run")]


@pytest.mark.parametrize("units", [4, 40])  # 12 in a step, and 120, where there are 20
def test_a_step_s_mean_gradient_has_the_noise_that_it_has_in_the_study(base: Path, text: Path, units: int) -> None:
    study = complete_study(a_study(base, units=units))
    model = LanguageModel.load(base, study.model.lora, seed=0)
    here = _Public.read(text, study).manifest(study, model)
    planned = study.privacy.sampling_probability * study.total_nominal_units
    assert here.study.privacy.sampling_probability * here.study.total_nominal_units == pytest.approx(min(planned, 20))

    def deviation(manifest: Any) -> float:
        of_one = mean_gradient(manifest, np.ones(1, dtype=np.int64), SITES).item()
        return float(np.sqrt(manifest.variance_in_sum(SITES, shown=SITES, attempt=1)) * of_one)

    # All present, one of them corrupt: the noise of 3, where that of 2 is claimed. Integers make Δ 1 % larger.
    claimed = known(study.privacy.noise_multiplier) * study.privacy.clipping_norm / planned
    assert deviation(here) == pytest.approx(claimed * np.sqrt(3 / 2), rel=0.02)


@pytest.mark.parametrize("kind", [None, "deidentified", "identifiable"])
def test_records_that_nobody_says_are_public_are_not_swept(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as refusal:
        require_public(tmp_path / "notes.jsonl", kind)
    assert "ε" in refusal.value.diagnostics()
    with pytest.raises(StudyError):
        require_public(None, "public")
    assert require_public(tmp_path / "notes.jsonl", "synthetic") == tmp_path / "notes.jsonl"


@pytest.mark.parametrize("kind", ["deidentified", "identifiable"])
def test_no_clipping_norm_is_chosen_on_records_of_care(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    said = CliRunner().invoke(app, ["plan", f"--public-text={path}", f"--public-text-kind={kind}", "--no-benchmark"])
    assert isinstance(said.exception, StudyError) and f"notes.jsonl is {kind}" in said.exception.what


@pytest.mark.parametrize(
    "toml",
    [
        "[privacy]\ntarget_epsilon = [1.0, 8.0]",
        "[privacy]\ntrust = ['local']",
        "[model]\nname = ['other']",
        "[training]\nlearning_rat = [1.0]",
        "[training]\nlearning_rate = []",
        "[training]\nlearning_rate = 0.1",
        "[about]\ntitle = ['x']",
        "repeats = 3",
        "repeats = 100\n[model]\nrank = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\nalpha = [1,2,3,4,5,6,7,8,9,10,11]",
    ],
)
def test_a_grid_that_would_compare_promises_or_nothing_is_refused(toml: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(toml)
    with pytest.raises(StudyError) as refusal:
        Grid.read(tmp_path / "grid.toml")
    assert "grid.toml" in refusal.value.what


def test_all_settings_are_judged_before_one_is_trained(base: Path, text: Path) -> None:
    told: list[str] = []
    for field, values in (("warmup_rounds", (0, 7)), ("learning_rate", (0.1, "fast"))):
        with pytest.raises(StudyError, match=field):
            sweep(a_study(base), Grid(training={field: values}), text, tell=told.append)
    with pytest.raises(StudyError, match="cannot be read"):
        sweep(a_study(base), Grid(model={"first_adapter": (None, "none.safetensors")}), text, tell=told.append)
    for privacy in ({"trust": "local"}, {"target_epsilon": None, "noise_multiplier": 1.0}, NO_NOISE):
        with pytest.raises(StudyError, match="--sweep"):
            sweep(a_study(base, privacy=privacy), Grid(training={"rounds": (1,)}), text)
    assert not told


def test_too_few_public_records_are_refused(base: Path, text: Path, tmp_path: Path) -> None:
    grid = Grid(training={"rounds": (1,)})
    few = public(tmp_path / "few.jsonl", patients=9)
    with pytest.raises(DataError, match="9 patients") as refusal:
        sweep(a_study(base), grid, few)
    assert NAMED not in refusal.value.diagnostics()
    with pytest.raises(GrandRoundsError, match="20 public patients"):
        sweep(a_study(base, units=40_000), grid, text)


def test_where_noise_has_stages_each_one_s_is_shown(base: Path) -> None:
    staged, plain = a_study(base, privacy={"noise_stages": [[2, 0.5], [3, 2.0]]}), a_study(base)
    tried = [
        Tried(setting={"privacy.clipping_norm": norm}, study=study, noise_multiplier=1.5, before=(9.0,), after=(8.0,))
        for norm, study in ((1.0, staged), (2.0, plain))
    ]

    def printed(*of: Tried) -> str:
        shown = io.StringIO()
        found = Sweep(source="terms.jsonl", trained=20, held_out=5, tried=of)
        print_sweep(Console(file=shown, width=200), found)
        return shown.getvalue()

    assert "1.5, 0.75 from 2, 3 from 3" in printed(*tried) and "z, from the attempt on" in printed(*tried)
    assert "from" not in printed(tried[1]).splitlines()[2] and "1.5" in printed(tried[1])
    figures = Sweep(source="terms.jsonl", trained=20, held_out=5, tried=(tried[0],)).figures
    assert [tuple(stage.values()) for stage in figures["tried"][0]["noise_stages"]] == [(2, 0.5), (3, 2.0)]
