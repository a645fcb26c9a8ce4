"""Synthetic notes beside a site's records: copies are found, strangers are not accused, and no word is repeated."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from grandrounds.common.data.record import Text
from grandrounds.common.errors import DataError, GrandRoundsError, StorageError
from grandrounds.common.sources.source import DataSource
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.generate.check import Checked, check, exceeding
from grandrounds.deploy.generate.notes_file import about_path
from grandrounds.deploy.generate.overlap import WORDS, Nearness, Overlap

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=12).map(" ".join), min_size=1, max_size=4)
VOCABULARY = [f"{first}{second}zz" for first in "bdfgklmnprst" for second in "aeiou"]


def nearness(notes: Sequence[str], records: Sequence[tuple[str, str]]) -> Nearness:
    overlap = Overlap(notes)
    for patient, text in records:
        overlap.compare(patient, Text(text=text))
    return overlap.nearness()


def shingles(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[at : at + WORDS]) for at in range(max(len(words) - WORDS + 1, min(len(words), 1)))]


def longest(hits: Sequence[Any]) -> int:
    """Of a row of hits, each told by whose it is: the words of the longest row of one, 0 of none."""
    best = run = 0
    for before, hit in zip([None, *hits], hits, strict=False):
        run = 0 if hit is None else run + 1 if hit == before else 1
        best = max(best, run)
    return best + WORDS - 1 if best else 0


@settings(max_examples=40)
@given(notes=TEXTS, records=TEXTS, patients=st.integers(1, 3))
def test_nearness_is_what_comparing_every_pair_by_hand_finds(
    notes: list[str], records: list[str], patients: int
) -> None:
    whose = [(f"p{number % patients}", text) for number, text in enumerate(records)]
    found = nearness(notes, whose)
    for number, note in enumerate(notes):
        own = shingles(note)
        sets = [set(shingles(text)) for text in records]
        parts = [len(set(own) & each) / max(len(set(own)), 1) for each in sets]
        assert found.contained[number] == pytest.approx(max(parts))
        assert found.run[number] == max(longest([True if one in each else None for one in own]) for each in sets)
        owners = [{patient for patient, text in whose if one in shingles(text)} for one in own]
        assert found.alone[number] == longest([min(each) if len(each) == 1 else None for each in owners])


def test_a_copy_is_contained_whatever_else_the_record_says() -> None:
    words = "the patient fell from a ladder on sunday and broke a wrist"
    found = nearness([words, "nothing of the kind was ever written there"], [("a", f"{words} {'more ' * 500}")])
    assert found.contained.tolist() == [1.0, 0.0]
    assert found.run.tolist() == found.alone.tolist() == [len(words.split()), 0]


def test_what_several_patients_have_is_nobody_s_own() -> None:
    form = "no known allergies no active medications today"
    shared = nearness([form], [("a", form), ("b", form)])
    assert shared.run.tolist() == [7] and shared.alone.tolist() == [0]
    assert nearness([form], [("a", form), ("a", form)]).alone.tolist() == [7]


@pytest.mark.parametrize(("notes", "unseen"), [(2, 2), (3, 2), (1, 4), (4, 2)])
def test_the_chance_of_so_many_exceedances_is_that_of_all_orders(notes: int, unseen: int) -> None:
    orders = list(permutations(range(notes + unseen)))
    for count in range(notes + 1):
        often = sum(sum(place > max(order[notes:]) for place in order[:notes]) >= count for order in orders)
        assert exceeding(count, notes=notes, unseen=unseen) == pytest.approx(often / len(orders))


def made_up(rng: random.Random, count: int, patients: str) -> list[dict[str, str]]:
    """Notes of one form, whose words nobody shares but by chance."""
    return [
        {
            "patient_id": f"{patients}{number}",
            "text": "History of present illness: the patient reports " + " ".join(rng.choices(VOCABULARY, k=40)),
        }
        for number in range(count)
    ]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    rng = random.Random(7)
    for name in ("records", "unseen"):
        lines = (json.dumps(record) + "\n" for record in made_up(rng, 60, name))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "site.toml").write_text('data = "records.jsonl"\nheld_out = "unseen.jsonl"\n')
    return tmp_path


def notes_of(site: Path, copies: int) -> Path:
    """Thirty notes like those of the site, of which some repeat half of a record."""
    records = [json.loads(line)["text"] for line in (site / "records.jsonl").read_text().splitlines()]
    texts = [record["text"] for record in made_up(random.Random(8), 30 - copies, "s")]
    texts += [f"{text[: len(text) // 2]} and was sent home" for text in records[:copies]]
    path = site / "notes.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def checked(site: Path, notes: Path) -> Checked:
    return check(notes, DataSource.of(site / "records.jsonl"), DataSource.of(site / "unseen.jsonl"))


def test_copies_are_found_and_notes_like_unseen_ones_are_not_accused(site: Path) -> None:
    honest = checked(site, notes_of(site, copies=0))
    assert (honest.records, honest.patients, len(honest.synthetic), len(honest.held_out)) == (60, 60, 30, 30)
    assert "No nearer than unseen notes" in honest.verdict() and "; 6 notes nearer than" in honest.verdict()
    few = replace(honest, synthetic=honest.synthetic[:2], held_out=honest.held_out[:2])
    assert few.verdict().startswith("NOTHING CAN BE TOLD: beside 2 held-out notes")
    copied = checked(site, notes_of(site, copies=8))
    assert copied.verdict().startswith("NEARER THAN UNSEEN NOTES")
    assert {name: beyond.count for name, beyond in copied.beyond().items()} == {"contained": 8, "run": 8, "alone": 8}
    assert all(beyond.is_nearer for beyond in copied.beyond().values())


def test_a_copy_in_a_short_note_stands_out_beside_unseen_notes_that_share_long_forms(site: Path) -> None:
    form = " ".join(f"form{number}" for number in range(40))
    for name in ("records", "unseen"):
        lines = [json.loads(line) for line in (site / f"{name}.jsonl").read_text().splitlines()]
        longer = ({**line, "text": f"{line['text']} {form}"} for line in lines)
        (site / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in longer))
    notes = notes_of(site, copies=8)
    copies = [" ".join(json.loads(line)["text"].split()[:20]) for line in notes.read_text().splitlines()]
    notes.write_text("".join(json.dumps({"text": text}) + "\n" for text in copies))
    assert [beyond.count for beyond in checked(site, notes).beyond().values()] == [8, 8, 8]


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, words)])


def refused(*words: str | Path) -> str:
    error = command(*words).exception
    assert isinstance(error, GrandRoundsError), error
    return error.diagnostics()


def test_the_page_is_the_site_s_alone_and_has_no_word_of_a_note_or_a_record(site: Path) -> None:
    page = site / "check.html"
    notes = notes_of(site, copies=8)
    said = command(notes, "--check", site / "site.toml", "--output", page).output
    text = page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    for shown in (said, text):
        assert "NEARER THAN UNSEEN NOTES" in shown and "for this site alone" in shown.lower()
        assert "8 of 30 synthetic notes are nearer than every held-out note" in shown
        assert not set(re.findall(r"\w+", shown)) & set(VOCABULARY) and "records3" not in shown
    assert "check.html exists" in refused(notes, "--check", site / "site.toml", "--output", page)


def test_notes_that_are_not_as_they_were_written_are_refused(site: Path) -> None:
    notes = notes_of(site, copies=0)
    about_path(notes).write_text(json.dumps({"notes_sha256": "0" * 64, "privacy": "x"}))
    with pytest.raises(StorageError, match="its hash is another"):
        checked(site, notes)
    about_path(notes).unlink()
    for wrong in ("secret", '{"note": "secret"}', '{"text": 1}'):
        notes.write_text(wrong)
        with pytest.raises(StorageError, match="it has other rows") as error:
            checked(site, notes)
        assert error.value.__cause__ is None and "secret" not in error.value.diagnostics()


def test_a_measure_that_would_be_too_lax_is_refused(site: Path) -> None:
    notes = notes_of(site, copies=0)
    with pytest.raises(DataError, match="patients with held-out records have others among the site's: 30"):
        check(notes, DataSource.of(site / "records.jsonl"), DataSource.of(site / "records.jsonl"))
    words = (notes, "--check", site / "records.jsonl", "--output", site / "page.html")
    assert "no records are held out" in refused(*words)
    assert command(*words, "--held-out", site / "unseen.jsonl").exit_code == 0
