"""A site's records as its operator sees them: on the terminal, as figures and as a page, without a word of any."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from grandrounds.client.site.data_report import DataReport, Spread
from grandrounds.client.site.reading import Reading
from grandrounds.client.site.survey import Survey
from grandrounds.common.data.buckets import bucket_lengths
from grandrounds.common.data.quarantine import Quarantine, SetAside
from grandrounds.common.data.record import PromptCompletion, Text
from grandrounds.common.data.text_lengths import TextLengths
from grandrounds.deploy.views.data import ALONE, MACHINE, columns, data_figures, print_data, render_data

READING = Reading(max_tokens=100, overlap=0, unit="patient", windows_per_unit=2, sampling_probability=0.5, steps=10)


def survey(patients, tokens, kind=Text, places=(), unmatched=()):
    return Survey(
        file="<notes>.jsonl",
        kind=kind,
        patients=Counter(patients),
        lengths=TextLengths(tokens=tokens),
        completions=TextLengths(tokens=[1.0] * len(tokens)),
        repeated=len(places),
        shared=1,
        marked_up=0,
        quarantine=Quarantine([SetAside(position=place, reason=why) for place, why in places]),
        opt_out_lines=3,
        unmatched=list(unmatched),
    )


def report():
    places = [("a, line 1", "is <empty>"), *((f"a, line {number}", "is odd") for number in range(2, 7))]
    found = survey({"p": 3, "q": 1}, [50.0, 250.0, 100.0, 100.0], places=places, unmatched=(2, 3))
    report = DataReport.surveyed(found, READING, most_units=2, study="ab12")
    return replace(report, machine=("found <today>", "the model computes on processors"))


def test_what_a_step_reads_follows_from_units_windows_and_tokens():
    step = report().step  # windows of 50, 250, 100 tokens are 1, 3, 1; of the other patient one
    least = next(length for length in bucket_lengths(100) if length >= 50)
    computed = 0.5 * (2 * (300 + 2 * least) / 5 + 100)
    assert (step.units, step.windows, step.tokens, step.computed) == (1.0, 1.5, 0.5 * (160 + 100), computed)
    assert (step.share, step.every, step.most_units) == (1.5 / 6, 2.0, 2)
    (windows,) = report().windows
    assert (windows.windows, windows.cut, windows.lost) == (6, 0, 0.0)
    assert windows.padding == pytest.approx(1 - 500 / (400 + 2 * least))
    assert [(bucket.tokens, bucket.windows) for bucket in windows.buckets] == [(least, 2), (100, 4)]
    assert [bucket.padding for bucket in windows.buckets] == pytest.approx([1 - 50 / least, 0.0])
    asked = DataReport.surveyed(survey({"p": 2}, [150.0, 50.0], PromptCompletion), READING, study="ab12")
    assert (asked.windows[0].windows, asked.windows[0].cut, asked.windows[0].lost) == (2, 1, 0.25)
    assert [one.max_tokens for one in DataReport.surveyed(survey({"p": 1}, [])).windows] == [64, 256, 1024]


@pytest.mark.parametrize("values", [[7], [0, 3], [290, 371], [1, 40, 5000], [1, 10**6], range(1, 60), [8000, 31_000]])
def test_a_histogram_has_every_value_once_in_few_columns_that_fit(values):
    spread = Spread.of(np.array(values))
    assert sum(bin_.count for bin_ in spread.bins) == len(values)
    assert all(sum(bin_.first <= value <= bin_.last for bin_ in spread.bins) == 1 for value in values)
    assert len(spread.bins) <= 14
    drawn = columns(spread)
    assert all(each.x >= 0 and each.x + each.width <= 440.01 and each.y >= 18 for each in drawn)


def test_terminal_and_page_say_the_same_and_that_it_is_for_this_site_alone():
    page = render_data(report(), site="north", written=datetime(2026, 1, 2, tzinfo=UTC))
    printer = io.StringIO()
    console = Console(file=printer, width=200)
    print_data(console, report())
    printed, words = printer.getvalue(), _Words()
    words.feed(page)
    for part in (
        "<notes>.jsonl, for study ab12",
        "2, without whom the opt-outs mean (lines: 1)",
        "1 to 3",
        "1.0, and never more than 2; each once in 2 steps",
        "read each of the patients 5 times",
        "Records that cannot be trained on: 6",
        "a, line 2; a, line 3; a, line 4",
        "is <empty>",
        "Lines of the opt-outs that match nobody: 2 of 3",
        "Line 2, 3: right for",
        "Texts of several patients: 1",
        "omputed as",
        MACHINE,
        "found <today>",
        "the model computes on processors",
        ALONE,
    ):
        assert part in printed
        assert part in words.said
    assert words.said.count(ALONE) == 2 and "For this site alone" in page.partition("<main")[0]
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=|url\(", page)
    figures = json.loads(json.dumps(data_figures(report())))
    assert figures["records_each"]["bins"] == [
        {"first": number, "last": number, "count": held} for number, held in ((1, 1), (2, 0), (3, 1))
    ]
    assert figures["set_aside"][0] == {
        "reason": "is odd",
        "count": 5,
        "places": ["a, line 2", "a, line 3", "a, line 4"],
    }


def test_records_with_nothing_to_look_at_are_said_to_have_nothing():
    clean = survey({"p": 1}, [5.0])
    page = render_data(
        DataReport.surveyed(Survey(**{**vars(clean), "shared": 0})), site="n", written=datetime(2026, 1, 2, tzinfo=UTC)
    )
    assert "Nothing: all records can be trained on" in page


class _Words(HTMLParser):
    """What a page says."""

    def __init__(self):
        super().__init__()
        self.said = ""

    def handle_data(self, data):
        self.said += f" {data}" if data.strip() else ""
