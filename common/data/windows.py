"""Windows: a record's tokens in pieces that a model reads at a time, so that all of a long record is trained on."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..model.example import NO_LOSS, Example

# Tokens from the first of a stretch to the first behind it.
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A record as a model reads it.

    Attributes:
        opening: what the tokenizer puts before every text; nothing of it is learnt.
        tokens: int32 [tokens], without the opening.
        learnt: the spans of ``tokens`` that are to be predicted, in order.
        prompt: how many of the tokens are a prompt, whose beginning may be left out.
    """

    opening: Sequence[int]
    tokens: NDArray[np.int32]
    learnt: tuple[Span, ...]
    prompt: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """At most a study's ``max_tokens`` of a record: ``tokens`` int32 [tokens], and the ``learnt`` spans of them."""

    tokens: NDArray[np.int32]
    learnt: tuple[Span, ...]

    @property
    def has_target(self) -> bool:
        """Whether a token is left to learn; the first of all is predicted from nothing."""
        return any(end > max(start, 1) for start, end in self.learnt)

    def example(self, length: int) -> Example:
        """The window, padded to ``length`` tokens.

        What stands on the padding is without effect: attention is causal, and nothing follows it.
        """
        token_ids = np.zeros(length, dtype=np.int32)
        token_ids[: len(self.tokens)] = self.tokens
        labels = np.full(length, NO_LOSS, dtype=np.int32)
        for start, end in self.learnt:
            labels[start:end] = self.tokens[start:end]
        return Example(token_ids=token_ids, labels=labels)


NOTHING = Window(tokens=np.zeros(0, dtype=np.int32), learnt=())  # in the place of a record that is set aside


def windows_of(layout: Layout, *, max_tokens: int, overlap: int) -> list[Window]:
    """A record's windows, of which each begins with the opening: one, where all of it fits into ``max_tokens``.

    A longer text or conversation becomes consecutive windows; each begins with the last ``overlap`` tokens of the one
    before, which are read again and not learnt again. Windows without anything to learn are left out, unless none has
    anything. A prompt loses its beginning, so that its completion stays whole; a completion that does not fit alone
    becomes windows of its own. Raises ModelError where ``max_tokens`` leaves no room.
    """
    room = max_tokens - len(layout.opening)
    if room <= overlap:
        raise ModelError(
            f"of {max_tokens} tokens, {len(layout.opening)} open each window and {overlap} are read again",
            why="no token would be left to be learnt",
            fix="raise data.max_tokens, or lower data.overlap",
        )
    size = len(layout.tokens)
    if size <= room:
        return [_window(layout, 0, size, 0)]
    if layout.prompt and size - layout.prompt <= room:
        return [_window(layout, size - room, size, 0)]
    found = list(_consecutive(layout, room, overlap))
    return [window for window in found if window.has_target] or found[:1]


def cut_of(layout: Layout, max_tokens: int) -> int:
    """How many tokens of a prompt no window holds: its beginning, or all of it."""
    room, size = max_tokens - len(layout.opening), len(layout.tokens)
    if not layout.prompt or size <= room:
        return 0
    return size - room if size - layout.prompt <= room else layout.prompt


def _consecutive(layout: Layout, room: int, overlap: int) -> Iterator[Window]:
    size, first = len(layout.tokens), layout.prompt
    for start in range(first, size, room - overlap):
        again = overlap if start > first else 0
        if start + again < size or start == first:
            yield _window(layout, start, min(start + room, size), again)


def _window(layout: Layout, start: int, end: int, again: int) -> Window:
    """The tokens from ``start`` to ``end``, of which the first ``again`` are only read."""
    opening = np.asarray(layout.opening, dtype=np.int32)
    moved = len(opening) - start
    # Those that reach into it: to look at all would take the square of a conversation's turns.
    nearest = bisect_right(layout.learnt, start, key=itemgetter(1))
    behind = bisect_left(layout.learnt, end, key=itemgetter(0))
    spans = ((max(first, start + again), min(last, end)) for first, last in layout.learnt[nearest:behind])
    return Window(
        tokens=np.concatenate([opening, layout.tokens[start:end]]),
        learnt=tuple((first + moved, last + moved) for first, last in spans if first < last),
    )
