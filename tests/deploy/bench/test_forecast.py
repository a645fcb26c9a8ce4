"""What a study may come to is read from runs like it, and from no others; and what cannot be read is said."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.utility_rows import row, written_down

from grandrounds.common.errors import StudyError
from grandrounds.common.schema import read_toml
from grandrounds.common.study.study import Study
from grandrounds.deploy.bench.utility.forecast import Forecast, Kind
from grandrounds.deploy.bench.utility.row import Row, Subject, stated_of
from grandrounds.deploy.bench.utility.scaling import PowerLaw
from grandrounds.deploy.bench.utility.ways import Case, Run, Way

PATIENTS = [60, 60, 120, 120, 240, 240]
PERPLEXITIES = [16.5, 15.6, 12.8, 12.1, 9.6, 10.1]  # with the power -0.35


def study_of(tables: dict[str, Any] | None = None, *, patients: int = 180, sites: int = 5) -> Study:
    return Case(sites=sites, patients=patients, split="iid", seed=5).read(tables or {})[0]


def with_privacy(study: Study, **changed: Any) -> Study:
    return study.model_copy(update={"privacy": study.privacy.model_copy(update=changed)})


def measured(
    study: Study, perplexities: list[float | None] | None = None, *, way: Way = "distributed", **changed: Any
) -> list[Row]:
    """Rows of the study's own kind and settings, but for what is ``changed``."""
    run = Run(way="distributed", epsilon=4.0, case=Case(sites=5, patients=180, split="iid", seed=5))
    own = Subject.of(run, study).model_dump(exclude={"way", "seed", "patients"})
    own |= {"stated": stated_of(study), "rounds": study.training.rounds} | changed
    return [
        row(way, after, seed=seed, patients=number, **own)
        for seed, (number, after) in enumerate(zip(PATIENTS, perplexities or PERPLEXITIES, strict=True))
    ]


def refusal(rows: list[Row], study: Study, **asked: Any) -> str:
    with pytest.raises(StudyError) as refused:
        Forecast.of(rows, study, split="iid", **asked)
    return refused.value.diagnostics()


def test_it_is_by_patients_alone_and_its_intervals_both_ways_are_of_one_run() -> None:
    study = study_of()
    found = Forecast.of(measured(study), study, split="iid", perplexity=11.0)
    law = PowerLaw.fit(PATIENTS, PERPLEXITIES)
    assert found.expected == law.expected(180) and found.slope == law.slope == pytest.approx(-0.35, abs=0.02)
    assert found.needed is not None
    low, line, high = found.needed
    assert law.expected(low)[0] == pytest.approx(11.0, rel=0.01) == pytest.approx(law.expected(high)[2], rel=0.01)
    text = " ".join(found.lines())
    assert f"about {line} patients ({low} to {high}), which are {-(-line // 5)} at each of 5 sites" in text
    assert "no lack of fit" in text and "Warning" not in text and "Left out" not in text and "beyond" not in text
    assert asdict(found)["kind"]["rounds"] == 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rounds": 8}, "8 rounds"),
        ({"sites": 10}, "10 sites"),
        ({"split": "age"}, "split age"),
        ({"noise_over_claimed": 1.29}, "noise 1.29"),
        ({"epsilon": 2.0}, "ε = 2"),
        ({"way": "local"}, "local"),
    ],
)
def test_runs_of_another_kind_are_not_used_and_the_refusal_says_which_there_are(
    changed: dict[str, Any], named: str
) -> None:
    study = study_of()
    others, own = measured(study, [19.0] * 6, **changed), measured(study)
    assert Forecast.of([*others, *own], study, split="iid") == Forecast.of(own, study, split="iid")
    assert f"6 ({Kind.of_row(others[0])})" in refusal(others, study) and named in refusal(others, study)


def test_more_rounds_than_were_measured_are_refused_and_do_not_count_as_more_patients() -> None:
    rows = measured(study_of())
    assert "(distributed, ε = 4, 8 rounds" in refusal(rows, study_of({"training": {"rounds": 8}}), perplexity=11.0)


@pytest.mark.parametrize("changed", [{"noise_multiplier": 0.5}, {"noise": False}])
def test_no_forecast_is_for_another_epsilon_than_the_study_s(changed: dict[str, Any]) -> None:
    rows, study = measured(study_of()), with_privacy(study_of(), target_epsilon=None, **changed)
    assert "state target_epsilon in place of noise_multiplier" in refusal(rows, study)


def test_runs_that_no_power_law_goes_through_are_said_to_be_so() -> None:
    study = study_of()
    found = Forecast.of(measured(study, [16.5, 15.6, 10.1, 9.9, 9.8, 10.2]), study, split="iid")
    assert found.lack_of_fit is not None and found.lack_of_fit < 0.05
    assert f"no power law holds here (F-test for lack of fit, p = {found.lack_of_fit:.2g})" in found.lines()[-1]
    untested = Forecast.of(measured(study)[::2], study, split="iid")
    assert untested.lack_of_fit is None and "not tested" in untested.lines()[-1]


def test_runs_that_gained_nothing_or_came_to_no_figure_are_left_out_by_name() -> None:
    study = study_of(patients=60)
    rows = measured(study, [25.0, 20.0, None, *PERPLEXITIES[3:]])  # from 20
    found = Forecast.of(rows, study, split="iid")
    assert found.runs == 3 and found.expected == PowerLaw.fit(PATIENTS[3:], PERPLEXITIES[3:]).expected(60)
    text = " ".join(found.lines())
    assert (
        "60 patients, seed 0 (perplexity 20 → 25); 60 patients, seed 1 (perplexity 20 → 20); "
        "120 patients, seed 2 (perplexity 20 → no finite one)." in text
    )
    assert "Warning: a run on 120 patients ended no better than it began." in text
    above = Forecast.of(rows, study_of(patients=240), split="iid")
    assert "Left out" in above.lines()[-1]  # and no warning
    assert "1 runs with a gain, on 240 patients" in refusal(measured(study, [*[None] * 5, 10.0]), study)


def test_what_the_schedule_comes_to_without_noise_is_said_and_that_no_law_goes_below_it() -> None:
    study = study_of()
    rows = measured(study)
    assert Forecast.of(rows, study, split="iid").floor is None
    off = measured(study, [9.0, 9.5, None, 9.2, 9.7, 9.1], way="noise-off", epsilon=None, noise_over_claimed=None)
    elsewhere = [row.model_copy(update={"split": "age", "perplexity_after": 2.0}) for row in off]
    longer = [row.model_copy(update={"rounds": 8, "perplexity_after": 2.0}) for row in off]
    other = [row.model_copy(update={"settings": "ef" * 32, "perplexity_after": 2.0}) for row in off]
    every = [*rows, *off, *elsewhere, *longer, *other]
    near = Forecast.of(every, study, split="iid")
    assert near.floor == (9.0, 9.7, 240)
    assert near.lines()[-1] == "Without noise the same schedule came to 9 to 9.7, on up to 240 patients."
    far = Forecast.of(every, study_of(patients=600), split="iid")
    assert far.expected[1] < 9 and "Warning: that is above what the law says" in far.lines()[-1]
    asked = Forecast.of(every, study, split="iid", perplexity=8.5)
    assert "Warning: that is above what the law says" in asked.lines()[-1]


def test_of_several_settings_the_study_s_own_count_whichever_run_was_over_first() -> None:
    study = study_of()
    others = measured(study_of({"training": {"learning_rate": 1.0}}), [19.0] * 6)
    more = measured(study_of({"privacy": {"clipping": "auto"}}), [18.0] * 6)
    own = Forecast.of([*others, *more, *measured(study)], study, split="iid")
    assert own == Forecast.of(measured(study), study, split="iid") and own.differs == ""
    stated = with_privacy(study, target_epsilon=4.0)  # ε is of the kind, and no setting
    assert own == Forecast.of([*others, *more, *measured(study)], stated, split="iid")
    alone = Forecast.of(measured(study_of({"training": {"learning_rate": 1.0}})), study, split="iid")
    assert alone.differs == "training.learning_rate = 1.0"
    assert "not the study's own. They differ in training.learning_rate = 1.0" in " ".join(alone.lines())
    for named in ("2 settings", others[0].settings[:8], "learning_rate = 1.0", 'clipping = "auto"'):
        assert named in refusal([*others, *more], study)


def test_what_is_planned_later_of_the_settings_is_said() -> None:
    study = study_of()
    found = Forecast.of(measured(study), study, split="iid").beside(with_privacy(study, clipping_norm=0.5))
    assert found.differs == "privacy.clipping_norm = 0.3"


def test_the_written_down_runs_are_read_as_their_page_says() -> None:
    tables = read_toml(Path(__file__).parents[2] / "results" / "levers-base.toml")
    rows = written_down("scaling", "levers")
    found = Forecast.of(rows, study_of(tables), split="iid", perplexity=9.0)
    assert (found.settings, found.differs, found.runs, found.failed) == ("c803dec4", "", 12, 0)
    assert (f"{found.slope:.2f}", f"{known_p(found):.2g}", found.needed) == ("-0.40", "0.081", (197, 314, 566))
    assert found.floor == (9.43, 11.1, 120) and "Warning: that is above what the law says" in found.lines()[-1]
    for patients, predicted, beyond, below in (
        (40, ["15.4", "19.7", "25.3"], True, False),
        (180, ["9.37", "11.4", "13.8"], False, False),
        (240, ["8.11", "9.34", "10.8"], True, True),
    ):
        others = [row for row in rows if row.patients != patients]
        one = Forecast.of(others, study_of(tables, patients=patients), split="iid")
        assert [f"{number:.3g}" for number in one.expected] == predicted
        text = " ".join(one.lines())
        assert (("beyond what was measured" in text), ("Warning" in text)) == (beyond, below)
    whole = [row for row in rows if row.stated["training"].get("learning_rate") == 2.4 and row.patients < 120]
    assert [(row.patients, row.perplexity_after) for row in whole] == [(40, 121.0), (60, 24.7)]


def known_p(found: Forecast) -> float:
    assert found.lack_of_fit is not None
    return found.lack_of_fit
