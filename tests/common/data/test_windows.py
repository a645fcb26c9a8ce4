from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.data.windows import Layout, Window, cut_of, windows_of
from grandrounds.common.errors import ModelError
from grandrounds.common.model.example import NO_LOSS

OPENING = [7, 8]


def layout(size: int, *, opening: list[int] = OPENING, prompt: int = 0) -> Layout:
    """Tokens that are told apart, from 100 on; what follows the prompt is learnt."""
    tokens = np.arange(100, 100 + size, dtype=np.int32)
    return Layout(opening=opening, tokens=tokens, learnt=((prompt, size),), prompt=prompt)


def learnt(window: Window) -> list[int]:
    return [token for start, end in window.learnt for token in window.tokens[start:end].tolist()]


@given(size=st.integers(1, 200), room=st.integers(2, 40), overlap=st.integers(0, 39), opening=st.integers(0, 3))
def test_every_token_of_a_text_is_learnt_in_one_window_whatever_they_share(
    size: int, room: int, overlap: int, opening: int
) -> None:
    overlap = min(overlap, room - 2)
    found = windows_of(layout(size, opening=[7] * opening), max_tokens=room + opening, overlap=overlap)
    told = [token for window in found for token in learnt(window)]
    single = {token for window in found for token in learnt(window) if not window.has_target}
    missing = set(range(100, 100 + size)) - set(told) - single
    assert len(told) == len(set(told)) and len(missing) <= 1, "a last token alone has nothing before it"
    assert all(window.tokens[:opening].tolist() == [7] * opening for window in found)
    assert all(len(window.tokens) <= room + opening for window in found)


def test_windows_follow_one_another_and_begin_with_the_end_of_the_one_before() -> None:
    first, second, third = windows_of(layout(10), max_tokens=6, overlap=1)
    assert [window.tokens.tolist() for window in (first, second, third)] == [
        [7, 8, 100, 101, 102, 103],
        [7, 8, 103, 104, 105, 106],
        [7, 8, 106, 107, 108, 109],
    ]
    assert [learnt(window) for window in (first, second, third)] == [
        [100, 101, 102, 103],
        [104, 105, 106],
        [107, 108, 109],
    ]


def test_no_window_has_only_what_the_one_before_has_learnt() -> None:
    assert len(windows_of(layout(4), max_tokens=6, overlap=2)) == 1
    assert [len(window.tokens) for window in windows_of(layout(6), max_tokens=6, overlap=2)] == [6, 6]


@given(prompt=st.integers(1, 60), completion=st.integers(1, 60), max_tokens=st.integers(3, 40))
def test_a_completion_stays_whole_and_its_prompt_loses_its_beginning(
    prompt: int, completion: int, max_tokens: int
) -> None:
    size, room = prompt + completion, max_tokens - len(OPENING)
    found = windows_of(layout(size, prompt=prompt), max_tokens=max_tokens, overlap=0)
    whole = list(range(100 + prompt, 100 + size))
    if completion <= room:
        (window,) = found
        assert learnt(window) == whole
        assert window.tokens[2:].tolist() == list(range(100 + max(0, size - room), 100 + size))
    else:
        told = [token for window in found for token in learnt(window)]
        assert told == whole[: len(told)] and len(whole) - len(told) <= 1
    held = {token for window in found for token in window.tokens[2:].tolist()}
    assert cut_of(layout(size, prompt=prompt), max_tokens) == len(set(range(100, 100 + prompt)) - held)


def test_windows_in_which_nothing_is_learnt_are_left_out_unless_none_has_anything() -> None:
    turns = Layout(opening=[], tokens=np.arange(30, dtype=np.int32), learnt=((14, 16),))
    (only,) = windows_of(turns, max_tokens=10, overlap=0)
    assert only.tokens.tolist() == list(range(10, 20)) and only.learnt == ((4, 6),)
    silent = Layout(opening=[], tokens=np.arange(30, dtype=np.int32), learnt=())
    (kept,) = windows_of(silent, max_tokens=10, overlap=0)
    assert not kept.has_target


def test_the_first_token_of_all_is_no_target() -> None:
    assert not Window(tokens=np.array([5, 6], dtype=np.int32), learnt=((0, 1),)).has_target
    assert Window(tokens=np.array([5, 6], dtype=np.int32), learnt=((0, 2),)).has_target


def test_an_example_has_its_window_s_tokens_and_learns_its_spans_alone() -> None:
    made = Window(tokens=np.array([5, 6, 7], dtype=np.int32), learnt=((1, 2),)).example(5)
    assert made.token_ids.tolist() == [5, 6, 7, 0, 0]
    assert made.labels.tolist() == [NO_LOSS, 6, NO_LOSS, NO_LOSS, NO_LOSS]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(2, 0), (3, 1)])
def test_windows_without_room_for_a_token_are_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ModelError, match="open each window"):
        windows_of(layout(5), max_tokens=max_tokens, overlap=overlap)


class Looked(tuple[tuple[int, int], ...]):
    """Spans of which none may be looked at but some."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("a window looks at all spans of its record: with all windows, at their square")


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.integers(2, 12), st.integers(0, 1))
def test_every_stretch_of_a_conversation_is_learnt_once_and_sought_where_it_is(
    sizes: list[int], room: int, overlap: int
) -> None:
    edges = np.cumsum(sizes).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    turns = Layout(opening=OPENING, tokens=np.arange(100, 100 + edges[-1], dtype=np.int32), learnt=Looked(spans))
    if edges[-1] <= room:
        return
    learnt = [
        int(token)
        for window in windows_of(turns, max_tokens=room + len(OPENING), overlap=overlap)
        for start, end in window.learnt
        for token in window.tokens[start:end]
    ]
    assert learnt == [100 + place for start, end in spans for place in range(start, end)]
