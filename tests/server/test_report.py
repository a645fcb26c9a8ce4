"""The report: its figures are the schedule's, its words fit the study, and its page stands alone and can be read."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml
from federation import Federation, small_study
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.accountant import Epsilon, epsilon
from grandrounds.common.privacy.events import Schedule
from grandrounds.server.claim import up
from grandrounds.server.report import build_report, render_json
from grandrounds.server.report_page import chart, render_html, render_model_card, ticks
from grandrounds.server.training import RoundClosed

DIMENSION = 50
ROUNDS, MAX_ATTEMPTS = 4, 6
NOISE_MULTIPLIER, SAMPLING, DELTA = 1.5, 0.25, 1e-3
PERPLEXITIES = (40.0, 25.0, 20.0, 12.5)
# What the command line and the page promise to be there.
REQUIRED = {
    *("privacy_unit", "neighboring_relation", "trust", "delta", "epsilon", "epsilon_rdp", "accountant"),
    *("noise_multiplier", "sampling_probability", "rounds", "max_attempts", "sites", "sites_per_patient"),
    *("perplexity_before", "perplexity_after", "dropouts"),
}


def ran(trust: str = "distributed", noise_multiplier: float | None = NOISE_MULTIPLIER, **privacy: Any) -> Federation:
    """A study that ran: site-2 is lost in the middle of round 2, and two sites in the first attempt of round 3."""
    study = small_study(
        trust=trust,
        noise_multiplier=noise_multiplier,
        privacy={"sampling_probability": SAMPLING, "delta": DELTA, **privacy},
        training={"rounds": ROUNDS, "max_attempts": MAX_ATTEMPTS},
    )
    word = np.uint32 if trust == "distributed" else np.uint16
    federation = Federation(
        study=study, dimension=DIMENSION, release=lambda manifest, site: lambda adapter: np.zeros(DIMENSION, word)
    )

    def is_lost(site: str, envelope: Any) -> bool:
        if envelope.attempt == 2:
            return site == "site-2" and envelope.exchange == "ciphertexts"
        return envelope.attempt == 3 and site in ("site-4", "site-5") and envelope.exchange == "adverts"

    return federation.run(is_lost)


def report_of(federation: Federation, **changes: Any) -> dict[str, Any]:
    training = federation.training
    closed = [replace(round_, perplexity=p) for round_, p in zip(training.rounds, PERPLEXITIES)]  # noqa: B905 - some studies run fewer rounds
    arguments: dict[str, Any] = {
        "manifest": federation.manifest,
        "rounds": closed,
        "attempts": training.accountant.attempts_committed,
        "exhausted": training.exhausted,
        "perplexity_before": 50.0,
        "base_model": "an/example",
        "evaluation": "synthetic notes",
        "data_sources": {f"site-{i}": "synthetic notes" for i in range(1, 6)},
        "counted": False,
        "setting": "simulation",
    }
    return build_report(**(arguments | changes))


@pytest.fixture(scope="module")
def federation() -> Federation:
    return ran()


@pytest.fixture(scope="module")
def report(federation: Federation) -> dict[str, Any]:
    return report_of(federation)


@pytest.fixture(scope="module")
def without_noise() -> dict[str, Any]:
    return report_of(ran(noise_multiplier=None))


@pytest.fixture(scope="module")
def local() -> dict[str, Any]:
    return report_of(ran("local", sites_per_patient=2))


def test_every_promised_figure_is_there(report: dict[str, Any]) -> None:
    assert set(report) >= REQUIRED
    assert (report["rounds"], report["max_attempts"], report["sites"]) == (ROUNDS, MAX_ATTEMPTS, 5)
    assert (report["perplexity_before"], report["perplexity_after"]) == (50.0, PERPLEXITIES[-1])


def test_epsilon_is_that_of_the_whole_schedule_however_much_of_it_was_used(
    federation: Federation, report: dict[str, Any]
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
    study = small_study(
        noise_multiplier=NOISE_MULTIPLIER,
        privacy={"sampling_probability": SAMPLING, "delta": DELTA},
        training={"rounds": 2, "max_attempts": 3},
    )
    federation = Federation(
        study=study, dimension=DIMENSION, release=lambda m, s: lambda a: np.zeros(DIMENSION, np.uint32)
    )
    federation.run(
        lambda site, envelope: (
            envelope.attempt > 1 and site in ("site-4", "site-5") and envelope.exchange == "ciphertexts"
        )
    )
    report = report_of(federation)
    assert report["exhausted"] and (report["rounds"], report["attempts"]) == (1, 3)
    lost = [(row["round"], row["attempt"], row["site"], row["in_sum"]) for row in report["dropouts"]]
    assert lost == [(2, attempt, site, False) for attempt in (2, 3) for site in ("site-4", "site-5")]
    assert report["utility"]["rounds"][-1]["attempts"] == [2, 3]
    assert report["utility"]["rounds"][-1]["epsilon_spent"] == report["epsilon"], "all of the schedule is spent"
    assert render_html(report).count("round 2: site-4, site-5 dropped out") == 4


def test_the_bound_on_attacks_is_never_below_the_best_attack_and_close_to_it() -> None:
    # One step that everyone takes part in: the best attack on a Gaussian is known exactly (Dong et al. 2022, 2.6).
    study = small_study(
        noise_multiplier=2.0, privacy={"sampling_probability": 1, "delta": DELTA}, training={"max_attempts": 1}
    )
    federation = Federation(
        study=study, dimension=DIMENSION, release=lambda m, s: lambda a: np.zeros(DIMENSION, np.uint32)
    )
    federation.run()
    for row in report_of(federation)["attack"]:
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
    all_sites = mechanism["noise_multiplier_credited"] * math.sqrt(5 / mechanism["honest_shares"])
    assert mechanism["noise_multiplier_with_all_sites"] == pytest.approx(all_sites)


def test_under_local_trust_overlap_has_both_figures_and_every_other_site_is_an_adversary(
    local: dict[str, Any],
) -> None:
    assert [row["sites_per_patient"] for row in local["overlap"]] == [1, 2, 5]
    assert all(row["epsilon_rdp"] > row["epsilon"] for row in local["overlap"])
    assert local["overlap"][1]["epsilon"] == local["epsilon"]
    assert "every site except" in local["adversary"] and "two sites" in local["protected"]
    assert local["mechanism"]["noise_multiplier_with_all_sites"] == local["mechanism"]["noise_multiplier_credited"]


def test_overlap_under_distributed_trust_claims_no_figure_that_nobody_has_analysed() -> None:
    report = report_of(ran(sites_per_patient=2))
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


def test_with_noise_nothing_says_that_there_is_no_privacy(report: dict[str, Any]) -> None:
    assert "NO PRIVACY" not in render_html(report) + render_model_card(report)


def test_a_claim_on_records_is_never_called_one_on_patients() -> None:
    report = report_of(ran(unit="record"))
    assert "for each record" in report["claim"] and "not a claim about patients" in report["protected"]
    assert "about a patient</h1>" not in render_html(report)


def test_page_card_and_json_say_that_nobody_can_verify_it(report: dict[str, Any]) -> None:
    assert report["verification"] == "not independently verifiable"
    for text in (render_html(report), render_model_card(report)):
        assert "Not independently verifiable" in text and "A simulation." in text
    assert "A simulation." not in render_html(report | {"setting": "federation"})


def test_what_is_not_claimed_is_in_all_three(report: dict[str, Any]) -> None:
    page, card = render_html(report), render_model_card(report)
    assert len(report["not_claimed"]) >= 11
    for limit in report["not_claimed"]:
        assert limit["title"].replace("'", "&#39;") in page and limit["title"] in card


def test_json_is_readable_and_round_trips(report: dict[str, Any]) -> None:
    assert json.loads(render_json(report)) == report


def test_an_evaluation_that_overflowed_is_null_and_not_infinity(federation: Federation) -> None:
    report = report_of(federation, perplexity_before=math.inf)
    assert json.loads(render_json(report))["perplexity_before"] is None
    assert "too large to state before" in render_html(report)


def test_a_study_without_a_finished_round_has_a_report(federation: Federation) -> None:
    never_begun = replace(federation.training.rounds[0], outcomes=(), survivors=(), epsilon_spent=0.0, perplexity=50.0)
    report = report_of(federation, rounds=[], exhausted=never_begun)
    assert report["perplexity_after"] == report["perplexity_before"]
    assert "schedule of attempts was used up" in render_html(report)


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


class Page(HTMLParser):
    """The tags of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name))]


def test_the_page_loads_nothing_and_runs_nothing(report: dict[str, Any]) -> None:
    text = render_html(report)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image"} & {tag for tag, _ in page.tags}
    assert page.attributes("src") == []
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert "url(" not in text and "@import" not in text


def test_the_page_can_be_read_by_ear_and_by_heading(report: dict[str, Any]) -> None:
    page = Page(render_html(report))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 2
    for attributes in charts:
        assert attributes["role"] == "img"
        assert all(label in ids for label in (attributes["aria-labelledby"] or "").split())
    assert all(target[1:] in ids for target in page.attributes("href"))


def test_a_dropout_is_marked_in_both_charts(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert page.count('<circle class="dropout"') == 2 * len({dropout["round"] for dropout in report["dropouts"]})
    assert page.count("round 3: site-4, site-5 dropped out") == 4  # <desc> and <title>, in each


def test_text_that_a_person_wrote_is_escaped(federation: Federation) -> None:
    page = render_html(report_of(federation, evaluation="<script>alert(1)</script>", base_model='"><img src=x>'))
    assert "script" not in {tag for tag, _ in Page(page).tags} and "img" not in {tag for tag, _ in Page(page).tags}


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_is_at_least_that_of_wcag_aa_in_both_schemes(report: dict[str, Any], scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_html(report), flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", blocks[scheme]))
    for ink, paper in [
        ("ink", "paper"),
        ("muted", "paper"),
        ("accent", "paper"),
        ("mark", "paper"),
        ("warn-ink", "warn"),
        ("stop-ink", "stop"),
    ]:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (WCAG 2.2, 1.4.3)."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_card_s_front_matter_is_what_a_hub_reads(report: dict[str, Any], without_noise: dict[str, Any]) -> None:
    front = yaml.safe_load(render_model_card(report).split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "an/example")
    assert "differential-privacy" in front["tags"]
    assert "no-privacy" in yaml.safe_load(render_model_card(without_noise).split("---\n")[1])["tags"]


def test_the_card_carries_the_claim_in_words(report: dict[str, Any]) -> None:
    assert report["claim"] in render_model_card(report)
    assert f"({up(report['epsilon'])}, {DELTA:g})-differentially private for each patient" in report["claim"]


@given(st.floats(0, 1e6), st.integers(0, 4))
def test_an_upper_bound_is_rounded_up_and_by_less_than_its_last_digit(value: float, digits: int) -> None:
    shown = float(up(value, digits))
    assert value - 1e-6 <= shown <= value + 1.001 * 10**-digits


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60), st.one_of(st.none(), st.floats(1e-3, 1e6)))
def test_a_chart_keeps_everything_inside_its_frame(values: list[float], limit: float | None) -> None:
    drawn = chart(dict(enumerate(values)), title="", description="", dropouts={0: "gone"}, limit=limit)
    points = [*drawn.points, *drawn.dropouts, *drawn.x_ticks, *drawn.y_ticks, *([drawn.limit] if drawn.limit else [])]
    for point in points:
        assert drawn.left - 1e-6 <= point.x <= drawn.right + 1e-6
        assert 0 < point.y <= drawn.bottom + 1e-6


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_and_reach_the_largest_value(largest: float) -> None:
    marks = ticks(largest)
    assert marks[0] == 0 and marks[-1] >= largest * (1 - 1e-9) and 2 <= len(marks) <= 7


def test_a_round_is_reported_as_training_announced_it(federation: Federation, report: dict[str, Any]) -> None:
    announced = federation.training.rounds
    assert all(isinstance(closed, RoundClosed) for closed in announced)
    assert [row["survivors"] for row in report["utility"]["rounds"]] == [list(r.survivors) for r in announced]


def test_a_figure_beside_the_claim_that_has_no_bound_costs_no_study_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_claim(schedule: Schedule, *, delta: float, relation: str = "add_or_remove_one") -> Epsilon:
        if (schedule, delta, relation) != (claimed.schedule, claimed.delta, "add_or_remove_one"):
            raise PrivacyError("above 10000", why="it promises nothing", fix="use less")
        return Epsilon(epsilon=4.0, epsilon_rdp=None, accountant="PLD")

    federation = ran()
    claimed = federation.manifest
    monkeypatch.setattr("grandrounds.server.report.epsilon", only_the_claim)
    report = report_of(federation)
    assert report["epsilon"] == 4.0
    assert report["epsilon_without_amplification"] is None
    assert report["overlap"][-1]["epsilon"] is None
    assert "ε = 4.00" in render_html(report)


def test_units_that_were_counted_in_the_records_are_told() -> None:
    federation = ran()
    counted, stated = report_of(federation, counted=True), report_of(federation)
    assert any("counted in the records" in limit["text"] for limit in counted["not_claimed"])
    assert not any("No count" in touch for touch in counted["data_touches"])
    assert any("No count" in touch for touch in stated["data_touches"])
