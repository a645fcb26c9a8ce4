"""Replacement by regular expressions of a site's own, none of which may take longer than it is given."""

import os
from collections.abc import Sequence
from typing import Final

from ...common.errors import DataError
from .rules import Replacement

_LONGEST_S: Final = 1.0  # of one pattern on one text; usual ones take microseconds
_MOST_TOO_LONG: Final = 20


class TooLongError(Exception):
    """A pattern was stopped on a text."""


class Patterns:
    """The replacements of a policy, one after another.

    A pattern that goes through ever more ways to match a text is stopped: that text is no record's any more. The
    library counts what all threads of the process take: a pattern has what all processors can do in its time, so that
    it does not depend on what is tokenised beside.
    """

    def __init__(self, replacements: Sequence[Replacement], *, longest_s: float = _LONGEST_S) -> None:
        import regex

        self._longest_s = longest_s * (os.cpu_count() or 1)
        self._compiled = [(regex.compile(each.pattern), each.instead) for each in replacements]
        self._too_long = [0] * len(self._compiled)

    def without(self, text: str) -> str:
        """The text with all that matches replaced. Raises TooLongError; DataError where a pattern does so often."""
        for number, (pattern, instead) in enumerate(self._compiled):
            try:
                text = pattern.sub(lambda _, instead=instead: instead, text, timeout=self._longest_s)
            except TimeoutError:
                self._too_long[number] += 1
                if self._too_long[number] < _MOST_TOO_LONG:
                    raise TooLongError from None
                raise DataError(
                    f"minimise.replace.{number} took longer than {self._longest_s:g} s of all processors together on "
                    f"each of {_MOST_TOO_LONG} records: {pattern.pattern}",
                    why="records that it is not done with cannot be trained on",
                    fix="write it so that there is one way to match a text: no repetition within a repetition, as in "
                    "(a+)+",
                ) from None
        return text
