"""The form of a note: its headings stand in it whatever the model draws, and no section is longer than it may be."""

from collections.abc import Sequence

import pytest
from support.study.tiny_models import tiny_tokenizer

from grandrounds.deploy.generate.form import Filling, Section

TOKENIZER = tiny_tokenizer()  # one byte a token
HEADINGS = ("# D\n", "## P\n")
FORM = [Section(heading=heading, tokens=6) for heading in ("", *HEADINGS)]


def note(*sections: str, form: Sequence[Section] = FORM) -> str:
    """The note, where the model would write these in turn; ``$`` is its end."""
    filling, found = Filling(form, TOKENIZER), ""
    left = [list(section) for section in sections]
    while not found.endswith("$"):
        letters = left[sum(heading in found for heading in HEADINGS)]
        drawn = TOKENIZER.eos_token_id if letters[0] == "$" else TOKENIZER(letters[0])["input_ids"][0]
        token = filling.next(drawn)
        if token == drawn:
            letters.pop(0)
        found += "$" if token == TOKENIZER.eos_token_id else TOKENIZER.decode([token])
    return found


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (("ab\n\nc", "ef\n\ng", "hi\n\nj"), "ab\n\n# D\nef\n\n## P\nhi\n\n$"),  # as real notes are
        (("ab$", "ef$", "hi$"), "ab\n\n# D\nef\n\n## P\nhi$"),  # which ends at once
        (("abcdefghijk", "abcdefghijk", "abcdefghijk"), "abcdef\n\n# D\nabcdef\n\n## P\nabcdef$"),  # never does
        (("a\nb\nc$", "\n\n$", "$"), "a\nb\nc\n\n# D\n\n\n## P\n$"),  # lines end no section; an empty one does
    ],
)
def test_every_heading_stands_in_its_place_whatever_the_model_writes(sections: tuple[str, ...], said: str) -> None:
    assert note(*sections) == said


def test_a_section_ends_at_what_it_says() -> None:
    lines = [section.model_copy(update={"until": "\n"}) for section in FORM]
    assert note("ab\nc", "ef$", "hi\nj", form=lines) == "ab\n# D\nef\n## P\nhi\n$"
