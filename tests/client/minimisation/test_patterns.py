"""Regular expressions of a site's own replace what they match, and none of them can keep a site from going on."""

import os

import pytest

from grandrounds.client.minimisation.patterns import Patterns, TooLongError
from grandrounds.client.minimisation.rules import Replacement
from grandrounds.common.errors import DataError, StudyError
from grandrounds.common.schema import validated

EVIL = "(a|aa)+$"
TEXT = "a" * 60 + "Zzyzx"


def patterns(*pairs, longest_s=1.0):
    replacements = [Replacement.model_validate({"pattern": pattern, "with": by}) for pattern, by in pairs]
    return Patterns(replacements, longest_s=longest_s)


def test_patterns_are_replaced_in_their_order_by_what_stands_there() -> None:
    found = patterns((r"MRN:?\s*\w+", r"[ID\1]"), (r"(?i)\bid(?!\])", "x"))
    assert found.without("MRN: 17, mrn 18, Identity") == r"[x\1], mrn 18, xentity"
    assert found.without(found.without("MRN: 17")) == found.without("MRN: 17")


def test_a_pattern_with_endless_ways_to_match_is_stopped() -> None:
    with pytest.raises(TooLongError):
        patterns((EVIL, ""), longest_s=0.01).without(TEXT)


def test_a_pattern_has_its_time_though_all_processors_are_at_work_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ("(?:[a-z]|ab|[ab ])*?[0-9x]{2}", "")  # some hundredths of a second
    with pytest.raises(TooLongError):
        patterns(slow, longest_s=1e-6).without("ab " * 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 10**8)
    assert patterns(slow, longest_s=1e-6).without("ab " * 7) == "ab " * 7


def test_a_pattern_that_is_stopped_again_and_again_is_refused_without_a_word_of_a_record() -> None:
    found = patterns(("b", ""), (EVIL, ""), longest_s=0.001)
    for _ in range(19):
        with pytest.raises(TooLongError):
            found.without(TEXT)
    with pytest.raises(DataError, match=r"minimise\.replace\.1 took longer than") as refusal:
        found.without(TEXT)
    assert "Zzyzx" not in refusal.value.diagnostics()
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize(
    ("pattern", "said"), [("(a", "is no regular expression"), ("a*", "matches nothing at all, and so everywhere")]
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(StudyError) as refusal:
        validated(Replacement, {"pattern": pattern, "with": "x"})
    assert said in refusal.value.what
