"""The form of a note: headings that stand in it whatever the model writes, each at the end of what stands before it."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from ...common.schema import Section as Table


class Section(Table):
    """A heading, or any text that notes have at this place, and behind it what the model writes.

    It ends at ``until``, where the model would end the note, or when it has written so many ``tokens``.
    """

    heading: str
    tokens: Annotated[int, Field(ge=1)]
    until: Annotated[str, Field(min_length=1)] = "\n\n"


class Filling:
    """One note while it is written behind its prompt: the model fills each section, and the form begins the next.

    The last section ends the note. So a small model that leaves the form is led back to it.
    """

    def __init__(self, sections: Sequence[Section], tokenizer: Any) -> None:
        """``sections`` are one at least."""
        self._tokenizer, self._end = tokenizer, tokenizer.eos_token_id
        self._left = deque(sections)
        self._forced, self._written = deque[int](), list[int]()
        self._begin(behind="")

    def next(self, drawn: int) -> int:
        """The token that stands in the note where the model would write ``drawn``."""
        if self._forced:
            return self._forced.popleft()
        if drawn != self._end and len(self._written) < self._section.tokens:
            self._written.append(drawn)
            until = self._section.until  # of which each token that ends it has a byte or more
            if until in str(self._tokenizer.decode(self._written[-len(until.encode()) :])):
                self._begin(behind="")
            return drawn
        self._begin(behind=self._section.until)
        return self._forced.popleft() if self._forced else drawn

    def _begin(self, *, behind: str) -> None:
        """The next section; without one, the note's end."""
        self._written.clear()
        if not self._left:
            self._forced.extend([] if self._end is None else [self._end])
            return
        self._section = self._left.popleft()
        text = behind + self._section.heading
        self._forced.extend(self._tokenizer(text, add_special_tokens=False, return_token_type_ids=False)["input_ids"])
