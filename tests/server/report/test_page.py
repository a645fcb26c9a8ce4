"""The report as people read it: the page stands alone and can be read, and the card says the same."""

import ast
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.study.verified_study import SmallStudy, eventful

from grandrounds.server.report.charts import chart, charts_of, ticks
from grandrounds.server.report.claim import in_context
from grandrounds.server.report.groups import in_groups
from grandrounds.server.report.page import markdown, render_html, render_model_card
from grandrounds.server.report.report import Declared
from grandrounds.server.report.rounding import odds_factor, up


@pytest.fixture(scope="module")
def federation() -> SmallStudy:
    return eventful()


@pytest.fixture(scope="module")
def report(federation: SmallStudy) -> dict[str, Any]:
    return federation.report()


@pytest.fixture(scope="module")
def without_noise() -> dict[str, Any]:
    return eventful(noise_multiplier=None).report()


def test_with_noise_nothing_says_that_there_is_no_privacy(report: dict[str, Any]) -> None:
    assert "NO PRIVACY" not in render_html(report) + render_model_card(report)


def test_page_and_card_say_how_to_verify_them_and_who_signed(report: dict[str, Any]) -> None:
    command = f"grandrounds verify DIR --manifest-hash {report['manifest_sha256']}"
    assert report["verification"] == command
    for text in (render_html(report), render_model_card(report)):
        assert command in text and "Signed by 5 of 5 sites" in text and "A simulation." not in text
    assert "A simulation." in render_html(report | {"setting": "simulation"})


def test_the_page_shows_commands_as_code(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert "`" not in page and "<code>grandrounds client fetch DIR --attack</code>" in page


def test_who_is_worse_off_is_said_by_report_page_and_card_and_comes_back(federation: SmallStudy) -> None:
    gains = np.concatenate([np.linspace(-0.3, -0.1, 10), np.linspace(0.3, 0.5, 10)])
    groups = in_groups(
        np.array([np.full(20, 50.0), np.full(20, 150.0), (3 - gains) * 50]),
        patients=[str(number) for number in range(20)],
        groups={"sex": ["F"] * 10 + ["M"] * 10, "race": ["A"] * 3 + ["B"] * 17},
    )
    report = federation.report(groups=groups)
    assert Declared.of(report).groups == groups
    assert [row["group"] for row in report["utility"]["groups"] if row["worse"]] == ["F"]
    page, card = render_html(report), render_model_card(report)
    said = "WORSE than before training for sex: F; LESS gained than by others for sex: F; one is too small to say."
    assert said in page and "WORSE than before training for sex" in card
    assert re.search(r'race: A</th><td class="number">3</td><td colspan="4">too small', page)
    assert "−0.200 [" in page
    assert "Who pays for the noise" not in render_html(federation.report(groups=groups[:1]))


def test_what_is_not_claimed_is_in_all_three(report: dict[str, Any]) -> None:
    page, card = render_html(report), render_model_card(report)
    assert len(report["not_claimed"]) >= 11
    for limit in report["not_claimed"]:
        assert limit["title"].replace("'", "&#39;") in page and limit["title"] in card


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
    names = [tag for tag, _ in page.tags]
    assert all(names.count(landmark) == 1 for landmark in ("header", "nav", "main", "footer"))
    assert page.attributes("href")[0] == "#report" and ("main", {"id": "report"}) in page.tags, "a link past the rest"
    headings = [attributes["id"] for tag, attributes in page.tags if tag == "h2"]
    assert headings[0] == "contents"
    listed = names.index("ol")
    links = [attributes["href"] for tag, attributes in page.tags[listed : names.index("main")] if tag == "a"]
    assert links == [f"#{heading}" for heading in headings[1:]]
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 2
    for attributes in charts:
        assert attributes["role"] == "img"
        assert all(label in ids for label in (attributes["aria-labelledby"] or "").split())
    assert all(target[1:] in ids for target in page.attributes("href"))


def test_what_the_charts_show_is_a_table_too(report: dict[str, Any]) -> None:
    text = render_html(report)
    (table,) = re.findall("<summary>The charts’ figures.*?</table>", text, flags=re.DOTALL)
    rows = [re.findall(r">([^<]*)</t[dh]>", row) for row in re.findall("<tr>.*</tr>", table)]
    assert rows[0] == ["Round", "Attempts", "Perplexity", "ε so far", "Not in its sum"]
    assert rows[1] == ["0", "–", "50", "0.00", "–"]
    spent = [row["epsilon_spent"] for row in report["utility"]["rounds"]]
    assert [row[3] for row in rows[2:]] == [up(value) for value in spent]
    assert (rows[3][2], rows[3][4]) == ("20", "site-2")


def test_a_number_is_rounded_in_one_way_wherever_it_stands(report: dict[str, Any]) -> None:
    spent = report["utility"]["rounds"][-1]["epsilon_spent"]
    assert charts_of(report)[1].last.label == up(spent)
    exact = report | {"epsilon": 3.531, "delta": 1e-5, "sampling_probability": 1 / 3}
    page = re.sub('style="[^"]*"', "", render_html(exact))
    assert "3.54" in page and "3.53" not in page
    assert "10⁻⁵" in page and "1e-05" not in page


@pytest.mark.parametrize(("epsilon", "called"), [(1.0, "strong"), (10.0, "reasonable"), (10.1, "weak or none")])
def test_an_epsilon_stands_beside_a_published_scale(report: dict[str, Any], epsilon: float, called: str) -> None:
    assert in_context(epsilon).endswith(f"{up(epsilon)}, is {called} by {'itself by ' * (epsilon > 10)}that scale.")
    assert in_context(report["epsilon"]) in render_html(report)


def test_bars_of_an_attack_have_a_scale_from_0_to_100(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert re.findall(r"<span>(\d+)(?: %)?</span>", page) == ["0", "25", "50", "75", "100"]
    widths = [float(width) for width in re.findall(r'style="width: ([0-9.]+)%"', page)]
    assert widths[1::2] == [round(100 * row["detection_rate_at_most"], 2) for row in report["attack"]]


def test_the_mechanism_is_folded_away_and_opens_in_print(report: dict[str, Any]) -> None:
    page = render_html(report)
    appendix = page[page.index('<h2 id="mechanism">') : page.index('<h2 id="glossary">')]
    assert appendix.count("<details>") == appendix.count("</details>") == 1
    assert "Noise multiplier of the claim" in appendix
    assert "details::details-content { content-visibility: visible" in page


def test_a_dropout_is_marked_in_both_charts(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert page.count('<circle class="dropout"') == 2 * len({dropout["round"] for dropout in report["dropouts"]})
    assert page.count("round 3: site-4, site-5 dropped out") == 4  # <desc> and <title>, in each


HOSTILE = (
    "**ε = 0.01, confirmed** ![ok](http://a.b/c.png) <img src=x> <script>x</script> | `a` | www.a.b a@b.c &lt; \\*"
)


def minimised(report: dict[str, Any], words: str) -> dict[str, Any]:
    return {**report, "data": [{**row, "minimised": [words]} for row in report["data"]]}


def test_text_that_a_person_wrote_is_escaped_on_the_page(report: dict[str, Any]) -> None:
    plain = Page(render_html(minimised(report, "dates shifted")))
    hostile = {**report, "base_model": HOSTILE, "utility": {**report["utility"], "evaluation": HOSTILE}}
    hostile["about"] = {name: [HOSTILE] if name == "institutions" else HOSTILE for name in report["about"]}
    rows = minimised(report, HOSTILE)["data"]
    hostile["data"] = [{**row, "source": HOSTILE, "residency": HOSTILE} for row in rows]
    assert Page(render_html(hostile)).tags == plain.tags


def test_text_that_a_person_wrote_is_escaped_on_the_card(report: dict[str, Any]) -> None:
    hostile = {**report, "base_model": HOSTILE, "utility": {**report["utility"], "evaluation": HOSTILE}}
    model = {**report["training"]["model"], "name": HOSTILE, "license": HOSTILE}
    hostile["training"] = {**report["training"], "model": model}
    card = render_model_card(minimised(hostile, HOSTILE))
    kinds = [
        [token.type for block in MarkdownIt().parse(text.split("---\n", 2)[2]) for token in block.children or [block]]
        for text in (render_model_card(minimised(report, "dates shifted")), card)
    ]
    assert {"image", "link_open", "html_inline", "code_inline"}.isdisjoint(set(kinds[1]) - set(kinds[0]))
    assert kinds[1].count("strong_open") == kinds[0].count("strong_open")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == HOSTILE
    code = re.findall(r"^base = (.*?)  #", card, re.MULTILINE)[0]
    assert ast.literal_eval(code) == HOSTILE


@given(st.text(st.sampled_from(" \\`*_[]<>|~&;#!$:@./()-+='\"19azε漢"), max_size=40))
def test_any_words_are_shown_by_markdown_as_they_are(text: str) -> None:
    words = " ".join(text.split()) or "x"
    _, paragraph, _ = MarkdownIt().parse(f"Perplexity on {markdown(words)}: 9")
    assert {token.type for token in paragraph.children or ()} == {"text"}
    assert "".join(token.content for token in paragraph.children or ()) == f"Perplexity on {words}: 9"


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_is_at_least_that_of_wcag_aa_in_both_schemes(report: dict[str, Any], scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_html(report), flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", blocks[scheme]))
    for ink, paper in [
        ("ink", "paper"),
        ("muted", "paper"),
        ("ink", "panel"),
        ("muted", "panel"),
        ("accent", "panel"),
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


def test_the_card_says_what_epsilon_means_and_counts_in_words(report: dict[str, Any]) -> None:
    card = render_model_card({**report, "rounds": 1})
    assert f"at most {odds_factor(report['epsilon'])} times as likely with any one patient as without" in card
    assert "after one round." in card and in_context(report["epsilon"]) in card


def test_the_card_s_front_matter_is_what_a_hub_reads(report: dict[str, Any], without_noise: dict[str, Any]) -> None:
    front = yaml.safe_load(render_model_card(report).split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "differential-privacy" in front["tags"]
    assert "no-privacy" in yaml.safe_load(render_model_card(without_noise).split("---\n")[1])["tags"]


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60), st.one_of(st.none(), st.floats(1e-3, 1e6)))
def test_a_chart_keeps_everything_inside_its_frame(values: list[float], limit: float | None) -> None:
    drawn = chart(dict(enumerate(values)), title="", axis="", description="", dropouts={0: "gone"}, limit=limit)
    points = [*drawn.points, *drawn.dropouts, *drawn.x_ticks, *drawn.y_ticks, *([drawn.limit] if drawn.limit else [])]
    for point in points:
        assert drawn.left - 1e-6 <= point.x <= drawn.right + 1e-6
        assert 0 < point.y <= drawn.bottom + 1e-6


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=60))
def test_no_value_of_a_chart_is_written_on_its_line(values: list[float]) -> None:
    drawn = chart(dict(enumerate(values)), title="", axis="", description="", dropouts={})
    first, second, *_ = drawn.points
    above, below = drawn.first.y < first.y - 5, drawn.first.y - 12 > first.y + 5
    assert above if second.y >= first.y else below
    assert drawn.last.x > drawn.points[-1].x + 5


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_and_reach_the_largest_value(largest: float) -> None:
    marks = ticks(largest)
    assert marks[0] == 0 and marks[-1] >= largest * (1 - 1e-9) and 2 <= len(marks) <= 7
