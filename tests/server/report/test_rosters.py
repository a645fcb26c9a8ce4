"""What the report says of a study that had several rosters, and of a round whose sums were more than one."""

from typing import Any

import pytest
from support.ledger.ledger_history import History
from support.study.federation import small_study
from support.study.verified_study import BETTER

from grandrounds.server.report.page import render_html
from grandrounds.server.report.report import Declared, build_report

OVERLAP: dict[str, Any] = {"sampling_probability": 0.25, "sites_per_patient": 2}


def history_of(trust: str = "distributed", **privacy: Any) -> History:
    return History(
        study=small_study(trust=trust, noise_multiplier=1.5, privacy=privacy, training={"rounds": 4, "max_attempts": 9})
    )


def report_of(history: History) -> dict[str, Any]:
    rounds = {attempt.round for attempt in history.verified.attempts}
    return build_report(
        history.verified,
        Declared(
            perplexity_before=50.0,
            perplexities=dict.fromkeys(rounds, 40.0),
            by_position=BETTER,
            evaluation="synthetic notes",
            evaluation_max_tokens=8192,
            evaluation_cut=0,
        ),
    )


@pytest.fixture(scope="module")
def succeeded() -> dict[str, Any]:
    """Four of five sites must answer; then, without site-5, all four of those that are left."""
    history = history_of(**OVERLAP)
    history.attempt([("site-2", "masked-input")])
    history.succeed({f"site-{number}": 4 for number in range(1, 5)}, threshold=4)
    history.attempt()
    return report_of(history)


def test_of_several_rosters_each_says_how_many_must_answer(succeeded: dict[str, Any]) -> None:
    either = "at least 4 of the 5 sites or all 4 sites, by the roster of the attempt"
    assert succeeded["secure_aggregation"]["must_answer"] == either
    assert f"only the sum over {either}, never one site’s update" in succeeded["adversary_sees"]
    assert either in render_html(succeeded)


def test_whose_records_trained_the_adapter_is_named_when_the_site_has_left(succeeded: dict[str, Any]) -> None:
    assert {row["site"]: row["has_left"] for row in succeeded["data"]} == {
        **{f"site-{number}": False for number in range(1, 5)},
        "site-5": True,
    }
    assert succeeded["sampler"]["draw_caps"].keys() == {f"site-{number}" for number in range(1, 6)}
    assert "site-5 (has left the study)" in render_html(succeeded)


def test_whoever_is_at_all_sites_is_at_those_of_the_largest_roster(succeeded: dict[str, Any]) -> None:
    assert [row["sites_per_patient"] for row in succeeded["overlap"]] == [1, 2, 5]


def test_a_roster_that_no_attempt_was_begun_under_is_not_told_of() -> None:
    history = history_of()
    history.succeed({f"site-{number}": 4 for number in range(1, 5)}, threshold=4)
    history.attempt()
    report = report_of(history)
    assert report["secure_aggregation"]["must_answer"] == "all 4 sites"
    assert len(report["data"]) == 4


def test_each_sum_that_was_unmasked_has_its_noise_stated_where_a_round_had_two() -> None:
    history = history_of()
    history.attempt(close=False)  # the server dies with the sum, and asks for another
    history.attempt([("site-2", "masked-input")])
    (round_,) = report_of(history)["utility"]["rounds"]
    assert [said["attempt"] for said in round_["noise_in_sums"]] == [1, 2]
    assert round_["noise_in_sums"][0]["over_claimed"] != round_["noise_in_sums"][1]["over_claimed"]


def test_under_local_trust_nothing_is_said_of_noise_in_sums() -> None:
    history = history_of("local")
    history.attempt()
    report = report_of(history)
    assert [round_["noise_in_sums"] for round_ in report["utility"]["rounds"]] == [[]]
    assert "What is left in the sums" not in render_html(report)
