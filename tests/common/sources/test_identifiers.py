"""Identifiers: one form for all spellings of a patient, and words that name nobody."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.sources.identifiers import canonical, clashes, names_nobody

SPELLINGS = {
    "a whole number": [
        "7",
        "7.0",
        "7.",
        "7.00",
        "7,0",
        "007",
        "+7",
        "0007.0",
        "7e0",
        "7E+00",
        "\uff17",
        "\u0667",
        " 7 ",
    ],
    "a large number, as R writes it": ["100000", "1e+05", "1E5", "100000.0", "0100000"],
    "a number in groups": ["943 476 5919", "9434765919", "943\u00a0476\u202f5919"],
    "letters and a number": [
        "A-17",
        "a-17",
        "A\u201117",
        "A\u201017",
        "A\u221217",
        "A\ufe6317",
        "A-017",
        "A-17.0",
        "A -17",
    ],
    "accents": ["Jos\u00e9", "Jose\u0301", "JOS\u00c9"],
    "a sharp s": ["Stra\u00dfe", "STRASSE"],
    "what nobody sees": [
        "ab",
        "a\u200bb",
        "a\u00adb",
        "\ufeffab",
        "a\u2060b",
        "ab\x00",
        "a\ufe0fb",
        "a\u034fb",
        "a\tb",
    ],
    "quotes and separators": ["17a", '"17a"', "'17a", "17a,", "17a;", "\u201c17a\u201d"],
}


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_all_spellings_of_one_identifier_have_one_form(spellings: list[str]) -> None:
    assert len({canonical(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "70"), ("7", "-7"), ("A-17", "B-17"), ("A-17", "A17"), ("1-23", "12-3"), ("10", "1"), ("1.5", "15"),
        ("1.0.3", "1.3"), ("0", "1"), ("a1", "1a"), ("700", "7"),
    ],
)  # fmt: skip
def test_identifiers_of_two_patients_stay_apart(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@given(st.text(max_size=12) | st.text("07.,eE+-\"' aA\u200b\u00ad\u2011", max_size=12))
def test_the_form_of_a_form_is_itself_and_case_or_composition_leave_it(text: str) -> None:
    form = canonical(text)
    assert canonical(unicodedata.normalize("NFD", text)) == form
    assert canonical(f"\u200b {text}\u2060") == form
    assert canonical(text.casefold()) == form
    assert canonical(form) == form


@given(st.integers(0, 10**15), st.integers(0, 4), st.integers(0, 4))
def test_a_number_has_one_form_and_no_other_number_has_it(number: int, zeros: int, decimals: int) -> None:
    spelled = f"{'0' * zeros}{number}{'.' * bool(decimals)}{'0' * decimals}"
    assert canonical(spelled) == canonical(str(number)) != canonical(str(number + 1))


def test_a_huge_exponent_stays_a_few_characters() -> None:
    assert len(canonical("1e9999")) < 10


@pytest.mark.parametrize(
    "word",
    ["nan", "NaN", "NULL", "None", "n/a", "N/A", "NA", "#N/A", "<NA>", "-", "--", "unknown", "Unknown", " UNKNOWN ", "",
     "?", ".", "_", "(null)", "NaT", "\\N", "not available", "N.A.", "n\u200ba", "\uff2e\uff35\uff2c\uff2c", "missing"],
)  # fmt: skip
def test_a_word_for_a_missing_identifier_names_nobody(word: str) -> None:
    assert names_nobody(word)


@pytest.mark.parametrize("name", ["0", "7", "Anna", "Nan-17", "null-1", "N", "unknown-7", "\u5f20"])
def test_an_identifier_that_only_looks_like_such_a_word_is_one(name: str) -> None:
    assert not names_nobody(name)


def test_each_further_spelling_is_told_once_beside_the_first() -> None:
    assert clashes(["7", "8", "7.0", "7", "7.0", "007", "8"]) == [(0, 2), (0, 5)]
    assert clashes(["7", "7", "8"]) == []
