"""Free strings of a study: one line of words that can be seen, whatever a file says; and what is shown of others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from support.study.federation import small_study

from grandrounds.common.errors import StudyError
from grandrounds.common.printable import printable
from grandrounds.common.schema import Words, validated
from grandrounds.common.study.study import Study
from grandrounds.deploy.enrolment.bundle import Flower

WORDS = TypeAdapter(Words)
HOSTILE = [
    "a\nε = 0.01",
    "a\r",
    "a\x1b[2J",
    "a\x9b2J",
    "a\u2028b",
    "a\u2029b",
    "a\u202eb",
    "a\u2066b",
    "a\u200bb",
    "a\u00a0b",
    "a\ufeff",
    "a\ue000",
    "a\U00013460",  # of Unicode 16, which the validator knows and Python does not
    "a" + 80 * " " + "b",
    " a",
    "a ",
    "a\tb",
]


@given(st.text(max_size=30))
def test_words_are_printable_and_have_single_spaces(text: str) -> None:
    try:
        WORDS.validate_python(text)
    except ValidationError:
        return
    assert text.isprintable() and text == " ".join(text.split()) != ""


@pytest.mark.parametrize("text", ["Genève, 2019 à 2024", "漢字 (A&E) [x] `y` <z>", "हिन्दी", "e\u0301", "100 % = α"])
def test_words_of_any_language_are_allowed(text: str) -> None:
    assert WORDS.validate_python(text) == text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "place", [("model", "name"), ("model", "target_modules"), ("sites", "records"), ("sites", "residency")]
)
def test_no_free_string_of_a_study_is_more_than_a_line(text: str, place: tuple[str, str]) -> None:
    fields = small_study().model_dump(mode="json")
    section, name = place
    (fields[section][0] if section == "sites" else fields[section])[name] = [text] if name == "target_modules" else text
    with pytest.raises(StudyError, match=name):
        validated(Study, fields)


@pytest.mark.parametrize("text", [*HOSTILE, "host:1 --insecure", "", "a" * 300])
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValidationError):
        Flower(address=text)


@given(st.text(max_size=50))
def test_what_is_shown_of_any_text_steers_no_terminal(text: str) -> None:
    assert printable(text).isprintable() and len(printable(text)) == len(text)


def test_a_diagnosis_of_a_hostile_name_is_one_line() -> None:
    shown = StudyError("a\x1b[2J\nε = 0.01", why="it is\r shown", fix="look").diagnostics()
    assert shown.isprintable() and "ε = 0.01" in shown
