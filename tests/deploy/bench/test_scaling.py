"""A power law through runs, its intervals both ways, and the test of whether they lie on one."""

import math

import numpy as np
import pytest
from scipy.stats import f, linregress
from support.utility_rows import written_down

from grandrounds.common.errors import StudyError
from grandrounds.common.schema import known
from grandrounds.deploy.bench.utility.scaling import PowerLaw


def test_a_line_through_logarithms_is_read_backwards_with_the_interval_of_one_more_run() -> None:
    seen, perplexities = [100, 200, 400, 800, 800], [16.5, 7.7, 4.1, 2.1, 1.9]
    law = PowerLaw.fit(seen, perplexities)
    known_answer = linregress(np.log(seen), np.log(perplexities))
    assert law.slope == pytest.approx(known_answer.slope)
    assert law.level == pytest.approx(known_answer.intercept)
    low, line, high = law.needed(5.0)
    assert law.level + law.slope * math.log(line) == pytest.approx(math.log(5.0))
    assert law.expected(low)[0] == pytest.approx(5.0) == pytest.approx(law.expected(high)[2])
    for end in (low, high):  # where 5.0 lies just at the end of a run's 95 % interval
        x = math.log(end) - law.centre
        error = law.deviation * math.sqrt(1 + 1 / law.count + x**2 / law.spread)
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


def test_lack_of_fit_has_the_p_value_of_the_field_s_own_example() -> None:
    """Kutner et al. 2005, Applied Linear Statistical Models, 5th edition, section 3.7: F(4, 5) = 14.80, P = 0.006."""
    deposits = [125, 100, 200, 75, 150, 175, 75, 175, 125, 200, 100]
    accounts = [160, 112, 124, 28, 152, 156, 42, 124, 150, 104, 136]
    law = PowerLaw.fit([math.exp(x / 50) for x in deposits], [math.exp(y / 100) for y in accounts])
    assert law.lack_of_fit == pytest.approx(f.sf(14.80, 4, 5), rel=2e-3) == pytest.approx(0.006, abs=5e-4)


def test_no_law_goes_through_runs_some_of_which_training_made_worse() -> None:
    """By F(1, 5) = 39.3, of the written-down runs on 60, 120 and 240 patients at the whole rate, 60's then stated."""
    whole = {60: "e018c7a3", 120: "c803dec4", 240: "c803dec4"}
    fitted = [
        row
        for row in written_down("scaling", "levers")
        if (row.way, row.epsilon, row.sites, row.split) == ("distributed", 4, 5, "iid")
        and row.settings[:8] == whole.get(row.patients)
    ]
    law = PowerLaw.fit([row.patients for row in fitted], [known(row.perplexity_after) for row in fitted])
    assert law.lack_of_fit == pytest.approx(f.sf(39.2879, 1, 5), rel=1e-4) == pytest.approx(0.0015, abs=5e-5)


@pytest.mark.parametrize(
    ("patients", "perplexities"),
    [([60, 120, 240], [9.0, 8.0, 7.5]), ([60, 60, 120], [9.0, 9.1, 8.0]), ([60, 60, 120, 240], [9.0, 9.0, 8.0, 7.9])],
)
def test_where_nothing_says_how_runs_differ_by_themselves_no_fit_is_tested(
    patients: list[float], perplexities: list[float]
) -> None:
    assert PowerLaw.fit(patients, perplexities).lack_of_fit is None
