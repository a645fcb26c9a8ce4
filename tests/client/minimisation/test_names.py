"""Names on a list are found as whole words, in any case, in one pass over the text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.client.minimisation.names import Names
from grandrounds.common.errors import DataError

QUOTE = "Zzyzx Planted"


def names(tmp_path: Path, text: str) -> Names:
    path = tmp_path / "staff.txt"
    path.write_text(text, encoding="utf-8")
    return Names.read(path)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Seen by Dr. MÜLLER.", "Seen by Dr. [NAME]."),
        ("Mu\u0308ller, müllerin, Müller-Berg", "[NAME], müllerin, [NAME]-Berg"),
        ("Anna Maria van\nDam and van Gogh", "[NAME] and van Gogh"),
        ("anna-maria VAN DAM; Anna, Maria", "[NAME]; Anna, Maria"),
        ("O'Brien’s and O’Brien; Brien", "[NAME]’s and [NAME]; Brien"),
        ("Dam van", "Dam van"),
        ("scan_Müller_2024, Müller2, 3müller", "scan_[NAME]_2024, [NAME]2, 3[NAME]"),
        ("van_Dam, Bed7, Bed, Bed 8, Anna 2 Maria", "[NAME], [NAME], Bed, Bed 8, Anna 2 Maria"),
        ("", ""),
    ],
)
def test_a_name_is_replaced_as_a_whole_word_in_any_case(tmp_path: Path, text: str, left: str) -> None:
    listed = names(tmp_path, "\ufeffMüller # surgery\n\nAnna Maria van Dam\nVan Dam\r\nO'Brien\nBed7\n# all\n")
    assert listed.without(text) == left


@given(st.lists(st.sampled_from(["an", "na", "Ana", "nan", "anan"]), max_size=12), st.sampled_from([" ", ", ", "\n\n"]))
def test_nothing_but_names_is_changed_and_what_was_changed_stays(words: list[str], between: str) -> None:
    listed = Names([["an"], ["ana"]])
    left = listed.without(between.join(words))
    assert left == between.join("[NAME]" if word.lower() in ("an", "ana") else word for word in words)
    assert listed.without(left) == left


def test_thousands_of_names_cost_no_more_than_a_few(tmp_path: Path) -> None:
    listed = names(tmp_path, "\n".join(f"name{'abcdefghij'[i % 10]}{i} Of{i}" for i in range(20_000)))
    assert listed.without("Namec12 of12 " * 1000) == "[NAME] " * 1000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (f"{QUOTE}\nä # {QUOTE}".encode(), "has one letter alone in line 2"),
        (b"# nobody\n\n", "has no names"),
        (f"{QUOTE}\nM\u00fcller".encode("latin-1"), "is not UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_without_a_word_of_it(
    tmp_path: Path, data: bytes | None, said: str
) -> None:
    path = tmp_path / "staff.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as refusal:
        Names.read(path)
    assert said in refusal.value.what
    assert "Zzyzx" not in refusal.value.diagnostics()
    assert refusal.value.__suppress_context__
