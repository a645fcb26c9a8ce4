"""A site's own function of texts, such as a recogniser of names, held to the one thing that a claim needs of it."""

import importlib
import inspect
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ...common.errors import GrandRoundsError, StudyError

Texts = Callable[[list[str]], list[str]]

_TRIED: Final = 8  # texts on which it is tried before the rest
_WHY: Final = "records are trained on only after this function has changed them"
_WHY_ALONE: Final = (
    "a patient's record would change other patients' training data, and what bounds one patient's influence would not "
    "hold"
)


class Hook:
    """The function ``module:function`` of lists of texts.

    *Formal guarantee.* A text's result depends on the text alone: the first texts are given to the function together,
    each by itself, and in the other order, and where results differ, nothing is prepared. Where it fails on a list,
    its texts are given to it one by one, so that one that it fails on costs no other. A function that tells later texts
    by earlier ones in a way that these do not show is beyond the test.
    """

    def __init__(self, name: str) -> None:
        """Raises StudyError where there is no such function."""
        self._name = name
        self._function = _loaded(name)
        self._lock = threading.Lock()  # whose it is, may not know of threads
        self._is_tried = False

    @property
    def source(self) -> bytes:
        """The file that it is written in."""
        file = inspect.getsourcefile(self._function)
        return Path(file).read_bytes() if file else b""

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """What becomes of each text, in order; None where the function fails on it.

        Raises StudyError where it gives something else than as many texts, or where its texts change each other.
        """
        with self._lock:
            if texts and not self._is_tried:
                self._try(texts[:_TRIED])
                self._is_tried = True
            if (together := self._called(texts)) is not None:
                return [*together]
            return [None if (one := self._called([text])) is None else one[0] for text in texts]

    def _try(self, texts: Sequence[str]) -> None:
        together, backwards = self._called(texts), self._called(texts[::-1])
        alone = [self._called([text]) for text in texts]
        if not together or not backwards or None in alone:
            return
        if not together == backwards[::-1] == [text for one in alone if one for text in one]:
            raise StudyError(
                f"the hook {self._name} makes something else of a text when others stand beside it",
                why=_WHY_ALONE,
                fix="have it keep nothing from one text to the next, draw nothing at random, and number nothing across "
                "texts",
            )

    def _called(self, texts: Sequence[str]) -> list[str] | None:
        try:
            results: Any = self._function(list(texts))
        except GrandRoundsError:
            raise
        except ImportError as error:
            raise _unusable(self._name, error) from None
        except Exception:  # whose message may quote a record
            return None
        if isinstance(results, list) and len(results) == len(texts) and all(type(one) is str for one in results):
            return results
        raise StudyError(
            f"the hook {self._name} does not give a list of as many texts as it gets",
            why="each record has to keep its place, and its patient",
            fix="have it return one str for each text, in their order",
        )


def _loaded(name: str) -> Texts:
    module, _, function = name.partition(":")
    try:
        found: Texts = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise what it likes
        raise _unusable(name, error) from error
    return found


def _unusable(name: str, error: Exception) -> StudyError:
    return StudyError(
        f"the hook {name} cannot be used ({type(error).__name__})",
        why=_WHY,
        fix="install its module, and what it needs, where grandrounds is installed, or correct minimise.hook in "
        "policy.toml",
    )
