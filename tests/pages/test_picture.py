"""The picture of a study: it says what the report says, stands alone, and copes with whatever a report may hold."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.study.verified_study import ran

from grandrounds.common.errors import StudyError
from grandrounds.common.study.artefacts import REPORT
from grandrounds.server.report.report import Report
from grandrounds.server.report.rounding import number
from pages.picture import drawn, render_picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> Report:
    return ran().report()


def changed(report: Report, **fields: Any) -> Report:
    return {**json.loads(json.dumps(report)), **fields}


def texts(picture: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314


def marks(picture: str, kind: str) -> int:
    """How many marks of a kind the rows have, beside the one in the legend."""
    paths = re.findall(rf'<path class="{kind}"[^>]* d="([^"]*)"', picture)
    return sum(path.count("M") for path in paths) - bool(paths)


def test_the_picture_states_the_report_s_figures(report: Report) -> None:
    said = texts(render_picture(report))
    assert said[:2] == ["Five sites, about 20 patients, two rounds", "ε = 1.25 at δ = 10⁻³ for each patient"]
    assert {number(report["perplexity_before"]), number(report["perplexity_after"])} <= set(said)


def test_every_site_has_a_mark_in_every_round(report: Report) -> None:
    lost = changed(report)
    first, second = lost["utility"]["rounds"]
    first["survivors"], second["survivors"] = first["survivors"][1:4], second["survivors"][:4]
    back = second["survivors"][0]
    lost["dropouts"] = [{"round": 2, "attempt": 2, "site": back, "exchange": "advert", "in_sum": False}]
    picture = render_picture(lost)
    assert (marks(picture, "there"), marks(picture, "back"), marks(picture, "lost")) == (7, 1, 3)
    assert "lost in an attempt, and back" in texts(picture)


def test_a_perplexity_that_is_not_known_leaves_a_line_between_those_that_are(report: Report) -> None:
    sparse = changed(report)
    sparse["utility"]["rounds"][0]["perplexity"] = None
    line = re.findall(r'<path class="line" d="([^"]*)"', render_picture(sparse))[0]
    assert line.startswith("M132 ") and "L704 " in line and line.count("L") == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_study_without_noise_has_no_line_of_privacy_and_says_so(report: Report, known: bool) -> None:
    without = changed(report, epsilon=None)
    for row in without["utility"]["rounds"]:
        row["epsilon_spent"] = None
        row["perplexity"] = row["perplexity"] if known else None
    if not known:
        without["perplexity_before"] = without["perplexity_after"] = None
    picture = render_picture(without)
    assert "NO PRIVACY: this study ran without noise" in texts(picture)
    assert picture.count('class="line"') == known
    assert "Privacy spent" not in picture


def test_a_study_without_a_closed_round_is_drawn(report: Report) -> None:
    assert "no rounds" in texts(render_picture(changed(report, rounds=0)))[0]


def test_a_name_is_text_and_nothing_is_loaded(report: Report) -> None:
    named = changed(report)
    named["data"][0]["site"] = '<image href="//x">'
    picture = render_picture(named)
    assert "<image" not in picture and "url(" not in picture and "@import" not in picture
    assert re.findall(r"https?://\S+", picture) == ['http://www.w3.org/2000/svg"']
    assert "prefers-color-scheme: dark" in picture


def test_a_folder_is_drawn_only_while_its_claims_hold(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    ran().close(folder)
    assert drawn(folder) == render_picture(json.loads((folder / REPORT).read_bytes()))
    (folder / REPORT).write_bytes((folder / REPORT).read_bytes().replace(b'"rounds": 2', b'"rounds": 3', 1))
    with pytest.raises(StudyError, match="The report is what follows from the ledger"):
        drawn(folder)
