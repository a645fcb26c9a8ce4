"""The report: its figures are the schedule's, what is in the ledger is from there, and its words fit the study."""

import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from support.study.federation import small_study
from support.study.verified_study import BETTER, HARMFUL, SmallStudy, eventful, used_up

from grandrounds.common.crypto.identity import shown_key
from grandrounds.common.errors import LedgerError, PrivacyError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.privacy.accountant import Epsilon, epsilon
from grandrounds.common.privacy.events import Schedule
from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study
from grandrounds.server.report.page import render_html, render_model_card
from grandrounds.server.report.report import Declared, build_report, render_json
from grandrounds.server.report.rounding import probability, up
from grandrounds.server.report.utility import published

ROUNDS, MAX_ATTEMPTS = 4, 6
NOISE_MULTIPLIER, SAMPLING, DELTA = 1.5, 0.25, 1e-3
# What the command line and the page promise to be there.
REQUIRED = {
    *("privacy_unit", "neighboring_relation", "trust", "delta", "epsilon", "epsilon_rdp", "accountant"),
    *("noise_multiplier", "sampling_probability", "rounds", "max_attempts", "sites", "sites_per_patient"),
    *("perplexity_before", "perplexity_after", "dropouts", "charges", "signatures", "ledger", "data", "sampler"),
}


@pytest.fixture(scope="module")
def federation() -> SmallStudy:
    return eventful()


@pytest.fixture(scope="module")
def report(federation: SmallStudy) -> dict[str, Any]:
    return federation.report()


@pytest.fixture(scope="module")
def without_noise() -> dict[str, Any]:
    return eventful(noise_multiplier=None).report()


@pytest.fixture(scope="module")
def local() -> dict[str, Any]:
    return eventful("local", sites_per_patient=2).report()


def test_every_promised_figure_is_there(report: dict[str, Any]) -> None:
    assert set(report) >= REQUIRED
    assert (report["rounds"], report["max_attempts"], report["sites"]) == (ROUNDS, MAX_ATTEMPTS, 5)
    assert (report["perplexity_before"], report["perplexity_after"]) == (50.0, 40.0 / ROUNDS)


def test_epsilon_is_that_of_the_whole_schedule_however_much_of_it_was_used(
    federation: SmallStudy, report: dict[str, Any]
) -> None:
    assert report["attempts"] < report["max_attempts"]
    schedule = federation.manifest.schedule
    assert schedule is not None and schedule.count == MAX_ATTEMPTS
    assert report["epsilon"] == epsilon(schedule, delta=DELTA).epsilon
    spent = [row["epsilon_spent"] for row in report["utility"]["rounds"]]
    assert spent == sorted(spent) and 0 < spent[-1] < report["epsilon"]


def test_dropouts_say_when_and_whether_the_update_is_in_the_sum(report: dict[str, Any]) -> None:
    late = {"round": 2, "attempt": 2, "site": "site-2", "exchange": "masked-input", "in_sum": False}
    early = [
        {"round": 3, "attempt": 3, "site": site, "exchange": "shares", "in_sum": False} for site in ("site-4", "site-5")
    ]
    assert report["dropouts"] == [late, *early]
    assert report["utility"]["rounds"][2]["attempts"] == [3, 4]


def test_the_attempts_of_a_round_that_was_never_finished_are_dropouts_and_spending_like_any_other_s() -> None:
    report = used_up().report()
    assert report["exhausted"] and (report["rounds"], report["attempts"]) == (1, 3)
    lost = [(row["round"], row["attempt"], row["site"], row["in_sum"]) for row in report["dropouts"]]
    assert lost == [(2, attempt, site, False) for attempt in (2, 3) for site in ("site-4", "site-5")]
    last = report["utility"]["rounds"][-1]
    assert (last["attempts"], last["survivors"], last["perplexity"]) == ([2, 3], [], 20.0)
    assert report["perplexity_after"] == 40.0, "the adapter is that of the last round that was closed"
    assert last["epsilon_spent"] == report["epsilon"], "all of the schedule is spent"
    page = render_html(report)
    assert page.count("round 2: site-4, site-5 dropped out") == 4 and "schedule of attempts was used up" in page


def test_an_attempt_that_never_ended_is_listed_and_counts(federation: SmallStudy) -> None:
    begun = entries.AttemptBegun(
        attempt=1,
        round=1,
        invited=tuple(federation.manifest.site_keys),
        adapter_sha256=federation.manifest.adapter_sha256,
    )
    cut_off = federation.lines[: 1 + len(federation.manifest.site_keys)]
    cut_off.append(federation.forged(begun, after=cut_off[-1]))
    cut_off.append(federation.forged(begun.model_copy(update={"attempt": 2}), after=cut_off[-1]))
    report = build_report(VerifiedLedger.of(cut_off), Declared.of(federation.report()))
    assert report["never_ended"] == [{"round": 1, "attempt": 1}, {"round": 1, "attempt": 2}]
    assert report["attempts"] == 2 and not report["exhausted"]
    assert (
        report["utility"]["rounds"][0]["epsilon_spent"] == federation.report()["utility"]["rounds"][1]["epsilon_spent"]
    )
    page = render_html(report)
    assert "attempt 1 of round 1, attempt 2 of round 1" in page and "ended before its last round" in page
    assert "never ended" not in render_html(federation.report())


def test_the_report_is_the_same_before_the_study_is_closed_and_after(tmp_path: Path) -> None:
    study = eventful()
    before = render_json(study.report())
    length, head = len(study.lines), study.ledger.verified.ledger.head
    study.close(tmp_path)
    assert render_json(study.report()) == before
    assert json.loads(before)["ledger"] == {"length": length, "head": head}


def test_what_is_declared_can_be_read_back_from_the_report(federation: SmallStudy) -> None:
    for report in (federation.report(), federation.report(perplexity_before=published(math.inf))):
        read_back = json.loads(render_json(report))
        assert build_report(federation.ledger.verified, Declared.of(read_back)) == report


def test_a_harmful_adapter_is_called_worse_in_all_three(federation: SmallStudy, report: dict[str, Any]) -> None:
    assert report["utility"]["verdict"] == "Better than the base model over whole records, and worse at no position."
    assert not any(row["worse"] for row in report["utility"]["by_position"])
    harmful = federation.report(by_position=HARMFUL)
    verdict = "WORSE than the base model at tokens 64–128 and at tokens 128–256."
    assert harmful["utility"]["verdict"] == verdict
    assert [row["worse"] for row in harmful["utility"]["by_position"]] == [False, True, True, False]
    page, card = render_html(harmful), render_model_card(harmful)
    assert page.count("<td>worse</td>") == card.count("**worse**") == 2
    assert page.count("<td>better</td>") == card.count("| better |") == 2
    assert verdict in page and verdict in card
    assert all(
        f"{row['tokens']}" in page and f"| {row['tokens']} |" in card for row in report["utility"]["by_position"]
    )


def test_an_adapter_that_is_worse_over_whole_records_or_beyond_a_float_is_called_so(federation: SmallStudy) -> None:
    overflowed = tuple(band.model_copy(update={"after": None}) for band in BETTER[3:])
    harmful = federation.report(perplexity_before=9.0, by_position=(*BETTER[:3], *overflowed))
    assert harmful["utility"]["verdict"] == (
        "WORSE than the base model over whole records and at tokens 256 and beyond."
    )


def test_records_that_were_cut_are_told(federation: SmallStudy) -> None:
    for cut, told in ((0, "none was longer"), (1, "1 was longer"), (3, "3 were longer")):
        report = federation.report(evaluation_cut=cut, evaluation_max_tokens=2048)
        for text in (render_html(report), render_model_card(report)):
            assert f"whole records, which are cut at 2,048 tokens; {told}" in text


def test_a_round_that_the_study_does_not_evaluate_has_no_perplexity_whatever_is_declared() -> None:
    federation = eventful(evaluations=2)
    report = federation.report()
    rows = report["utility"]["rounds"]
    assert [(row["evaluated"], row["perplexity"]) for row in rows] == [
        (False, None),
        (True, 20.0),
        (False, None),
        (True, 10.0),
    ]
    assert report["perplexity_after"] == 10.0
    assert set(Declared.of(report).perplexities) == {2, 4}
    page = render_html(report)
    assert page.count('<circle class="dropout"') == 2 * 2, "the mark of a round that was not evaluated is on the line"


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: [],
        lambda report: {},
        lambda report: "report",
        lambda report: report | {"utility": report["utility"] | {"evaluation": "ε = 0.01\nconfirmed"}},
        lambda report: report | {"perplexity_before": 0.0},
        lambda report: report | {"perplexity_before": "9.1"},
        lambda report: report | {"utility": report["utility"] | {"by_position": [{"begin": 0}]}},
        lambda report: report | {"utility": report["utility"] | {"by_position": [3]}},
        lambda report: report | {"utility": report["utility"] | {"cut": -1}},
        lambda report: (
            report | {"utility": report["utility"] | {"rounds": [{"round": [], "evaluated": True, "perplexity": 2.0}]}}
        ),
        lambda report: report | {"utility": report["utility"] | {"rounds": 7}},
    ],
)
def test_a_report_of_another_form_is_refused(report: dict[str, Any], damage: Any) -> None:
    with pytest.raises(LedgerError, match="not one that this version writes"):
        Declared.of(damage(report))


def test_every_site_s_records_are_described_in_its_own_words() -> None:
    study = small_study(noise_multiplier=None).model_dump(mode="json")
    study["sites"][0] |= {"records": "letters of <one> ward", "sensitivity": "deidentified", "residency": "Oslo"}
    study["sites"][1] |= {"records": "a public corpus", "sensitivity": "public", "sha256": "12" * 32}
    federation = SmallStudy(study=validated(Study, study))
    report = federation.report()
    assert report["data"][0] == {
        "site": "site-1",
        "source": "letters of <one> ward",
        "sensitivity": "deidentified",
        "nominal_size": 4,
        "residency": "Oslo",
        "sha256": None,
        "minimised": None,
        "largest_epsilon": None,
        "budget_epsilon": None,
        "has_left": False,
    }
    assert (report["data"][1]["sha256"], report["data"][2]["sensitivity"]) == ("12" * 32, "identifiable")
    page = render_html(report)
    for words in ("letters of &lt;one&gt; ward", "de-identified", "Oslo", "12" * 32, "not stated"):
        assert words in page


def test_what_sites_take_out_of_their_records_is_told_as_rules_and_as_no_part_of_the_claim() -> None:
    study = small_study(noise_multiplier=NOISE_MULTIPLIER).model_dump(mode="json")
    said_of_none = SmallStudy(study=validated(Study, study)).report()
    study["sites"][0] |= {"minimised": ["dates shifted", "long <numbers> replaced"]}
    study["sites"][1] |= {"minimised": []}
    report = SmallStudy(study=validated(Study, study)).report()
    stated = [row["minimised"] for row in report["data"]]
    assert stated[:3] == [["dates shifted", "long <numbers> replaced"], [], None]
    page, card = render_html(report), render_model_card(report)
    assert "Minimised: dates shifted; long &lt;numbers&gt; replaced" in page and page.count("Minimised:") == 2
    assert "- site-1: dates shifted; long &lt;numbers&gt; replaced" in card and "- site-2:" not in card
    for text in (page, card):
        assert "no part of the privacy claim" in text
    for text in (render_html(said_of_none), render_model_card(said_of_none)):
        assert "inimised" not in text and "no part of the privacy claim" not in text


def test_the_report_says_what_the_study_is_for_and_whom_to_ask() -> None:
    study = small_study(noise_multiplier=NOISE_MULTIPLIER).model_dump(mode="json")
    about = {
        "title": "Letters <2026>",
        "purpose": "shorter letters",
        "institutions": ["Oslo", "Bergen"],
        "contact": "dpo@example.org",
        "dated": "2026-11-30",
        "begins": "2026-12-01",
        "ends": "2027-03-31",
    }
    study["about"] = about
    study["sites"][0] |= {"largest_epsilon": 4.0, "budget_epsilon": 8.5}
    study["sites"][1] |= {"budget_epsilon": 10.0}
    report = SmallStudy(study=validated(Study, study)).report()
    assert report["about"] == {**about, "audit": None}
    page = render_html(report)
    for words in ("<title>Privacy report of Letters &lt;2026&gt;</title>", "shorter letters", "Oslo; Bergen"):
        assert words in page
    assert "from 2026-12-01 to 2027-03-31" in page and "2026-11-30" in page and "dpo@example.org" in page
    assert "site-1: one study may have an ε of 4, all studies together one of 8.5" in page
    assert "site-2: all studies together one of 10" in page and "site-3: " not in page


def test_there_are_no_epochs_and_the_average_participation_is_q_times_the_steps(report: dict[str, Any]) -> None:
    sampler = report["sampler"]
    assert sampler["expected_participations"] == SAMPLING * report["attempts"]
    assert sampler["expected_participations_in_whole_schedule"] == SAMPLING * MAX_ATTEMPTS
    assert sampler["epochs"].startswith("None.") and "1.5 of all 6" in sampler["epochs"]
    assert sampler["epochs"] in html.unescape(render_html(report))


def test_charges_signatures_and_the_ledger_are_those_of_the_audit(
    federation: SmallStudy, report: dict[str, Any]
) -> None:
    assert report["charges"] == {"site-1": 4, "site-2": 3, "site-3": 4, "site-4": 4, "site-5": 4}
    assert report["signatures"] == {"server": federation.server.public_key, "sites": federation.manifest.site_keys}
    page = render_html(report)
    for key in (federation.server.public_key, *federation.manifest.site_keys.values()):
        assert shown_key(key) in page
    assert report["ledger"]["head"] in page


def test_the_bound_on_attacks_is_never_below_the_best_attack_and_close_to_it() -> None:
    # One step that everyone takes part in: the best attack on a Gaussian is known exactly (Dong et al. 2022, 2.6).
    study = small_study(
        noise_multiplier=2.0, privacy={"sampling_probability": 1, "delta": DELTA}, training={"max_attempts": 1}
    )
    for row in SmallStudy(study=study).report()["attack"]:
        best = norm.cdf(norm.ppf(row["false_alarm_rate"]) + 1 / 2.0)
        assert best <= row["detection_rate_at_most"] <= 1.25 * best


def test_other_readings_of_the_same_study_stand_on_the_right_side_of_the_claim(report: dict[str, Any]) -> None:
    assert report["epsilon"] < report["epsilon_rdp"]
    assert report["epsilon"] < report["epsilon_replace_one"]
    assert report["epsilon"] < report["epsilon_without_amplification"]
    assert [row["sites_per_patient"] for row in report["overlap"]] == [1, 5]
    assert report["overlap"][0]["epsilon"] == report["epsilon"] < report["overlap"][1]["epsilon"]
    curve = [row["epsilon"] for row in report["epsilon_curve"]]
    assert curve == sorted(curve, reverse=True)


def test_the_credited_noise_reaches_the_claim_s_and_all_survivors_add_more(report: dict[str, Any]) -> None:
    mechanism = report["mechanism"]
    assert NOISE_MULTIPLIER <= mechanism["noise_multiplier_credited"] < 1.01 * NOISE_MULTIPLIER
    assert mechanism["noise_multiplier_with_all_sites"] == pytest.approx(NOISE_MULTIPLIER * math.sqrt(5 / 4), rel=0.01)


def test_under_local_trust_overlap_has_both_figures_and_every_other_site_is_an_adversary(
    local: dict[str, Any],
) -> None:
    assert [row["sites_per_patient"] for row in local["overlap"]] == [1, 2, 5]
    assert all(row["epsilon_rdp"] > row["epsilon"] for row in local["overlap"])
    assert local["overlap"][1]["epsilon"] == local["epsilon"]
    assert "every site except" in local["adversary"] and "two sites" in local["protected"]
    assert local["mechanism"]["noise_multiplier_with_all_sites"] == local["mechanism"]["noise_multiplier_credited"]


def test_overlap_under_distributed_trust_claims_no_figure_that_nobody_has_analysed() -> None:
    report = eventful(sites_per_patient=2).report()
    assert report["epsilon_rdp"] is None and report["epsilon_replace_one"] is None
    assert "replaced" not in render_html(report)


def test_without_noise_there_is_no_claim_and_no_figure_of_privacy(
    report: dict[str, Any], without_noise: dict[str, Any]
) -> None:
    assert set(without_noise) == set(report)
    nothing = {key for key, value in without_noise.items() if value is None}
    assert nothing >= {"claim", "epsilon", "epsilon_rdp", "delta", "noise_multiplier", "accountant", "attack"}
    for text in (render_html(without_noise), render_model_card(without_noise)):
        assert "NO PRIVACY" in text
        assert "ε" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
        assert "differential" not in text.lower()


def test_a_claim_on_records_is_never_called_one_on_patients() -> None:
    report = eventful(unit="record").report()
    assert "for each record" in report["claim"] and "not a claim about patients" in report["protected"]
    assert "about a patient</h1>" not in render_html(report)


def test_json_is_readable_and_round_trips(report: dict[str, Any]) -> None:
    assert json.loads(render_json(report)) == report


def test_an_evaluation_that_overflowed_is_null_and_not_infinity(federation: SmallStudy) -> None:
    report = federation.report(perplexity_before=published(math.inf))
    assert json.loads(render_json(report))["perplexity_before"] is None
    assert "no finite figure before" in render_html(report)


def test_the_report_says_at_how_many_units_draws_are_cut_and_what_that_costs(federation: SmallStudy) -> None:
    manifest, sampler = federation.manifest, federation.report()["sampler"]
    assert manifest.schedule is not None
    assert sampler["draw_caps"] == {name: manifest.draw_cap(name) for name in manifest.site_keys}
    assert sampler["delta_of_caps"] == manifest.schedule.cut_delta


def test_a_study_without_a_finished_round_has_a_report() -> None:
    report = SmallStudy(study=small_study(noise_multiplier=NOISE_MULTIPLIER)).report()
    assert (report["attempts"], report["rounds"], report["exhausted"]) == (0, 0, False)
    assert report["perplexity_after"] == report["perplexity_before"]
    assert "ended before its last round" in render_html(report)


def test_no_key_of_the_report_speaks_of_the_sites_own_figures(report: dict[str, Any]) -> None:
    private = re.compile(r"(^|_)(counts?|numbers?|draws?|loss|losses|norms?|units|records|patients)$")
    assert [key for key in keys(report) if private.search(key) and key != "clipping_norm"] == []


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for child in value.values():
            yield from keys(child)
    elif isinstance(value, list):
        for child in value:
            yield from keys(child)


def test_the_card_carries_the_claim_in_words(report: dict[str, Any]) -> None:
    assert report["claim"] in render_model_card(report)
    assert f"({up(report['epsilon'])}, {probability(DELTA)})-differentially private for each patient" in report["claim"]


@given(st.floats(0, 1e6), st.integers(0, 4))
def test_an_upper_bound_is_rounded_up_and_by_less_than_its_last_digit(value: float, digits: int) -> None:
    shown = float(up(value, digits))
    assert value - 1e-6 <= shown <= value + 1.001 * 10**-digits


def test_a_round_is_reported_as_training_announced_it(federation: SmallStudy, report: dict[str, Any]) -> None:
    announced = federation.training.rounds
    assert [row["survivors"] for row in report["utility"]["rounds"]] == [list(r.survivors) for r in announced]


def test_a_figure_beside_the_claim_that_has_no_bound_costs_no_study_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_claim(schedule: Schedule, *, delta: float, relation: str = "add_or_remove_one") -> Epsilon:
        if (schedule, delta, relation) != (claimed.schedule, claimed.delta, "add_or_remove_one"):
            raise PrivacyError("above 10000", why="it promises nothing", fix="use less")
        return Epsilon(epsilon=4.0, epsilon_rdp=None, accountant="PLD")

    federation = eventful()
    claimed = federation.manifest
    monkeypatch.setattr("grandrounds.server.report.figures.epsilon", only_the_claim)
    monkeypatch.setattr("grandrounds.server.rounds.accountant.epsilon", only_the_claim)
    report = federation.report()
    assert report["epsilon"] == 4.0
    assert report["epsilon_without_amplification"] is None
    assert report["overlap"][-1]["epsilon"] is None
    assert "ε = 4.00" in render_html(report)
