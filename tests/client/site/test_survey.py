"""What a site's operator is told of the data before a study: read one after another, and right in aggregate."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.study.tiny_models import tiny_tokenizer

from grandrounds.client.budget.policy import Policy
from grandrounds.client.site.data_report import DataReport
from grandrounds.client.site.folder import SiteSettings
from grandrounds.client.site.reading import Reading, windows_in
from grandrounds.client.site.survey import Survey
from grandrounds.common.data import text_lengths
from grandrounds.common.data.windows import Layout, windows_of
from grandrounds.common.errors import DataError
from grandrounds.common.sources.source import DataSource


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)  # of bytes: a token a letter
    return folder


@pytest.fixture
def surveyed(model, tmp_path):
    def survey(*rows, opted_out="", **settings):
        (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "out.txt").write_text(opted_out)
        policy = Policy.model_validate({"data": {"opted_out": tmp_path / "out.txt"}})
        settings = {"data": tmp_path / "notes.jsonl", **settings}
        return Survey.of(SiteSettings(name="n", model=model, **settings), policy)

    return survey


def row(patient, text):
    return {"patient_id": patient, "text": text}


def test_what_repeats_is_told_apart_from_what_patients_share_and_who_opted_out_counts_nowhere(surveyed):
    rows = [row("a", "x"), row("A", "x"), row("a", "y"), row("b", "y"), row("c", "x"), row("c", ""), row("d", "x")]
    found = surveyed(*rows, opted_out="c\ne\n", similar_identifiers="same")
    assert (dict(found.patients), found.records) == ({"A": 3, "b": 1, "d": 1}, 5)
    assert (found.repeated, found.shared, found.unmatched) == (1, 2, [2])
    assert list(found.told())[1] == "  notes.jsonl, line 6: its text is empty, or no text"
    with pytest.raises(DataError, match="no record is left: all of its patients are among the opt-outs"):
        surveyed(*rows, opted_out="a\nb\nc\nd", similar_identifiers="same")


def test_texts_that_are_none_yet_are_told_in_number(surveyed):
    marked = ["<p>ill</p>", "{\\rtf1\\ansi ill}", "c2xlcHQgd2VsbCBh" * 8, "ill<BR>well"]
    plain = ["BP <120, pH > 7", "well\n" * 40, "see https://ehr.example/notes/7?a=b", "{rtf}"]
    found = surveyed(*(row(f"p{number}", text) for number, text in enumerate([*marked, *plain])), opted_out="p0\n")
    assert [line for line in found.told() if "HTML" in line] == [
        "3 of the records look like HTML, RTF or base64, and would be learnt as they are: have their text exported, or "
        "give them as documents of FHIR"
    ]
    assert not any("HTML" in line for line in surveyed(*(row("p", text) for text in plain)).told())


def test_a_source_is_not_held_in_memory(surveyed, model, tmp_path, monkeypatch):
    monkeypatch.setattr(text_lengths, "_RECORDS", 10)
    surveyed(*(row(number, f"{number} {'x' * 20_000}") for number in range(200)))  # and what is loaded once is there
    tracemalloc.start()
    assert Survey.of(SiteSettings(name="n", data=tmp_path / "notes.jsonl", model=model), Policy()).records == 200
    assert tracemalloc.get_traced_memory()[1] < 2_000_000, "of a file of 4 MB"
    tracemalloc.stop()


def test_a_study_reads_of_long_and_short_units_what_many_draws_read():
    reading = Reading(max_tokens=8, overlap=0, unit="patient", windows_per_unit=2, sampling_probability=0.25, steps=6)
    windows, random = np.array([1, 2, 5, 9]), np.random.default_rng(3)
    shares = []
    for _ in range(4000):
        read = [np.zeros(count, dtype=bool) for count in windows]
        for _ in range(6):
            for unit in read:
                if random.random() < 0.25:
                    unit[random.permutation(len(unit))[:2]] = True
        shares.append(sum(unit.sum() for unit in read) / windows.sum())
    error = 5 * np.std(shares) / np.sqrt(len(shares))  # false alarm: below one in a million, and the seed is fixed
    assert abs(reading.share_read(windows) - np.mean(shares)) < error
    assert reading.units(np.array([1, 2, 3, 4]), np.array([1, 3])).tolist() == [1, 9]


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_what_a_step_computes_for_nothing_is_what_many_draws_compute_for_nothing(probability):
    reading = Reading(
        max_tokens=64, overlap=0, unit="patient", windows_per_unit=2, sampling_probability=probability, steps=1
    )
    random, batches = np.random.default_rng(5), {16: 4, 32: 2, 64: 1}
    windows = random.integers(1, 4, 80)
    lengths, ends = random.integers(1, 65, windows.sum()), np.array(list(batches))
    starts, filled, empty, held = np.cumsum(windows) - windows, 0, 0, 0
    for _ in range(1500):
        units = np.flatnonzero(random.random(len(windows)) < probability)
        read = [starts[unit] + random.permutation(windows[unit])[:2] for unit in units]
        drawn = lengths[np.concatenate([*read, np.zeros(0, dtype=np.int64)])]
        for end, each in zip(ends, np.bincount(np.searchsorted(ends, drawn), minlength=3), strict=True):
            empty += int(end * (-each % batches[int(end)]))
        held, filled = held + drawn.sum(), filled + (ends[np.searchsorted(ends, drawn)] - drawn).sum()
    computed = held + filled + empty
    # Windows of one patient come together, which the expectation leaves out; the seed is fixed.
    assert reading.padding(lengths, windows, batches) == pytest.approx((filled / computed, empty / computed), abs=0.01)


@given(size=st.integers(1, 200), room=st.integers(2, 40), overlap=st.integers(0, 39))
def test_windows_are_estimated_as_they_are_made(size, room, overlap):
    overlap = min(overlap, room - 2)
    layout = Layout(opening=(), tokens=np.zeros(size, dtype=np.int32), learnt=((0, size),))
    made = len(windows_of(layout, max_tokens=room, overlap=overlap))
    (estimated,) = windows_in(np.array([float(size)]), room, overlap).tolist()
    assert estimated - made in (0, 1), "a last token alone makes no window"


def test_lengths_of_some_records_stand_for_all_and_prompts_are_cut_and_not_continued(surveyed):
    found = surveyed(row("a", "x" * 30), row("b", "x" * 9), row("b", "x" * 30))
    reading = Reading(max_tokens=8, overlap=0, unit="patient", windows_per_unit=2, sampling_probability=1.0, steps=1)
    assert found.windows(8).tolist() == [4, 2, 4]
    assert found.read_by(reading) == (
        "your median record has 30 tokens; your text makes 10 windows of at most 8 tokens; a step draws all of your "
        "patients, and reads at most 2 of each, at random: over the study's 1 step, 40 % of your text is read "
        "at least once, on average"
    )
    asked = surveyed(
        {"patient_id": "a", "prompt": "x" * 30, "completion": "y"},
        {"patient_id": "b", "prompt": "x" * 30, "completion": "y" * 20},
    )
    assert asked.windows(8).tolist() == [1, 3]
    in_windows = DataReport.surveyed(asked, reading).windows[0]
    assert (in_windows.windows, in_windows.cut) == (4, 2)
    assert in_windows.lost == (32 - 8 + 31) / (32 + 51), "of the second the whole prompt, as nothing of it fits"


def test_whoever_opted_out_by_an_identifier_that_was_replaced_counts_nowhere(surveyed, tmp_path):
    (tmp_path / "walk.csv").write_text("from,to\nold,c\n")
    data = DataSource(files=(tmp_path / "notes.jsonl",), crosswalk=tmp_path / "walk.csv")
    found = surveyed(row("a", "x"), row("c", "y"), row("old", "z"), opted_out="OLD\n", data=data)
    assert list(found.told()) == []
    assert dict(found.patients) == {"a": 1}
