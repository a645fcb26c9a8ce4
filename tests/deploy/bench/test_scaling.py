"""How many patients a quality takes: a line through the rows of the benchmark of utility, read backwards."""

import math

import numpy as np
import pytest
from scipy.stats import linregress
from support.utility_rows import row

from grandrounds.common.errors import StudyError
from grandrounds.deploy.bench.utility.scaling import Forecast, PowerLaw
from grandrounds.deploy.bench.utility.ways import Case


def test_a_line_through_logarithms_is_read_backwards_with_the_interval_of_its_own_t_test() -> None:
    seen, perplexities = [100, 200, 400, 800, 800], [16.5, 7.7, 4.1, 2.1, 1.9]
    law = PowerLaw.fit(seen, perplexities)
    known_answer = linregress(np.log(seen), np.log(perplexities))
    assert law.slope == pytest.approx(known_answer.slope)
    assert law.level == pytest.approx(known_answer.intercept)
    low, line, high = law.needed(5.0)
    assert law.level + law.slope * math.log(line) == pytest.approx(math.log(5.0))
    for end in (low, high):  # where 5.0 lies just at the end of the line's own 95 % interval
        x = math.log(end) - law.centre
        error = law.deviation * math.sqrt(1 / law.count + x**2 / law.spread)
        distance = abs(law.level + law.slope * math.log(end) - math.log(5.0))
        assert distance == pytest.approx(3.182446 * error)  # Student's t with 3 degrees of freedom, 97.5 %
    assert low < line < high


def test_what_one_more_run_comes_to_has_the_prediction_interval_of_a_single_observation() -> None:
    seen, perplexities = [100, 200, 400, 800, 800], [16.5, 7.7, 4.1, 2.1, 1.9]
    low, line, high = PowerLaw.fit(seen, perplexities).expected(300)
    design = np.stack([np.ones(5), np.log(seen)], axis=1)
    fitted, (squares,), _, _ = np.linalg.lstsq(design, np.log(perplexities), rcond=None)
    here = np.array([1.0, math.log(300)])
    variance = squares / 3 * (1 + here @ np.linalg.inv(design.T @ design) @ here)
    assert math.log(line) == pytest.approx(here @ fitted)
    assert math.log(high / line) == pytest.approx(math.log(line / low)) == pytest.approx(3.182446 * variance**0.5)


def test_patients_are_not_read_from_runs_that_do_not_show_that_more_help() -> None:
    with pytest.raises(StudyError, match="may as well be 0"):
        PowerLaw.fit([100, 200, 400], [5.0, 9.0, 4.9]).needed(3.0)
    with pytest.raises(StudyError, match="2 runs"):
        PowerLaw.fit([100, 200], [5.0, 4.0])


def test_patients_are_read_from_runs_of_the_study_s_own_trust_epsilon_and_settings() -> None:
    rows = [row("distributed", 10.0 - i, seed=i, patients=60 * 2**i) for i in range(4)]
    study, _ = Case(sites=3, patients=9, split="iid", seed=5).read({})
    for changed, named in (({"target_epsilon": 2.0}, "of 4"), ({"trust": "local"}, "measure it")):
        other = study.model_copy(update={"privacy": study.privacy.model_copy(update=changed)})
        with pytest.raises(StudyError) as refused:
            Forecast.of(rows, other, perplexity=9.0)
        assert named in refused.value.diagnostics()
    other_settings = [row("distributed", 1.0, seed=i, stated={"training": {"learning_rate": 1.0}}) for i in range(4)]
    both = Forecast.of([*rows, *other_settings], study, perplexity=9.0)
    assert both == Forecast.of(rows, study, perplexity=9.0)
    assert both.seen == 9 * study.training.rounds and "beyond what was measured" in both.lines()[-1]
    assert both.needed is not None and both.needed.patients[0] < both.needed.patients[1]
