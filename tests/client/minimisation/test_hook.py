"""A hook gives as many texts as it gets, each by itself; what it raises is told without a word of a record."""

import sys
from itertools import count
from types import ModuleType

import pytest

from grandrounds.client.minimisation.hook import Hook
from grandrounds.common.errors import StudyError

QUOTE = "Zzyzx"


@pytest.fixture
def hook(monkeypatch):
    """Hooks of functions, as if each stood in a module that is installed."""

    def named(function):
        module = ModuleType("hospital_deid")
        monkeypatch.setattr(module, "run", function, raising=False)
        monkeypatch.setitem(sys.modules, "hospital_deid", module)
        return Hook("hospital_deid:run")

    return named


def test_a_hook_gives_each_text_another(hook) -> None:
    assert hook(lambda texts: [text.upper() for text in texts])(["a", "b"]) == ["A", "B"]
    assert hook(lambda texts: texts)([]) == []


def test_a_text_that_a_hook_fails_on_costs_no_other(hook) -> None:
    def failing(texts):
        if QUOTE in texts:
            raise ValueError(f"cannot parse {QUOTE}")
        return [text.upper() for text in texts]

    assert hook(failing)(["a", QUOTE, "b"]) == ["A", None, "B"]


def counting():
    """A hook that changes with each call."""
    calls = count()
    return lambda texts: [f"{next(calls)}" for _ in texts]


@pytest.mark.parametrize(
    "broken",
    [
        counting(),
        lambda texts: [texts[0]] * len(texts),
        lambda texts: [text if len(texts) == 1 else text.upper() for text in texts],
    ],
)
def test_a_hook_whose_texts_change_each_other_is_refused(hook, broken) -> None:
    with pytest.raises(StudyError, match="makes something else of a text when others stand beside it"):
        hook(broken)(["ab", "cd", "ef"])


@pytest.mark.parametrize("results", [lambda texts: texts[1:], lambda texts: "".join(texts), lambda texts: [1, 2]])
def test_a_hook_that_gives_something_else_than_as_many_texts_is_refused(hook, results) -> None:
    with pytest.raises(StudyError, match="does not give a list of as many texts as it gets"):
        hook(results)([QUOTE, "b"])


def test_what_a_hook_lacks_is_told_once_and_not_as_a_fault_of_records(hook) -> None:
    def lacking(texts):
        raise ImportError(QUOTE)

    with pytest.raises(StudyError, match=r"cannot be used \(ImportError\)") as refusal:
        hook(lacking)(["a"])
    assert QUOTE not in refusal.value.diagnostics()
    for name in ("nowhere_deid:run", "math:nowhere"):
        with pytest.raises(StudyError, match="cannot be used"):
            Hook(name)


def test_presidio_says_how_it_is_installed_where_it_is_not() -> None:
    hook = Hook("grandrounds.client.minimisation.presidio:anonymise")
    with pytest.raises(StudyError, match="Presidio cannot be used") as refusal:
        hook(["a"])
    assert "pip install presidio-analyzer presidio-anonymizer" in refusal.value.fix
    assert b"presidio_analyzer" in hook.source
