"""How long the texts of records are in a model's tokens: in aggregate, for whoever holds them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

from ..model.library_errors import library_errors
from .record import Chat, Content, PromptCompletion, Text
from .tokenisation import Tokenisation

# Of so many records, anywhere in the source, so many characters each are read: seconds, however many
# and however long the records are.
_RECORDS: Final = 1024
_CHARACTERS: Final = 8_000


@dataclass(frozen=True, kw_only=True)
class TextLengths:
    """Tokens of some records' texts, what a model's template puts around them aside."""

    tokens: Sequence[float]

    @property
    def median(self) -> float:
        """The tokens of a record in the middle; 0 where no record has a text."""
        return median(self.tokens) if self.tokens else 0.0


class TextSample:
    """Texts of records that are told one after another: as many at most, and each as likely to be among them."""

    def __init__(self) -> None:
        self._random = Random(0)  # noqa: S311 (the same each time)
        self._told = 0
        self._texts: list[tuple[str, int]] = []

    def add(self, text: str) -> None:
        """Tell of one more."""
        self._told += 1
        kept = text[:_CHARACTERS], len(text)
        if len(self._texts) < _RECORDS:
            self._texts.append(kept)
        elif (place := self._random.randrange(self._told)) < _RECORDS:
            self._texts[place] = kept

    def lengths(self, model: Path) -> TextLengths:
        """By the tokenizer in the folder ``model``. Raises ModelError."""
        counted = _counter(model)([text for text, _ in self._texts])
        return TextLengths(
            tokens=[
                tokens * whole / len(text) for (text, whole), tokens in zip(self._texts, counted, strict=True) if text
            ]
        )


def text_of(content: Content) -> str:
    """All that is written in a record; nothing of one that is set aside."""
    match content:
        case Text(text=text):
            return text
        case PromptCompletion(prompt=prompt, completion=completion):
            return f"{prompt} {completion}"
        case Chat(messages=messages):
            return " ".join(turn.content for turn in messages)
    return ""


def _counter(model: Path) -> Callable[[list[str]], list[int]]:
    """What counts the tokens of texts; from a fast tokenizer's file it is there at once, without the model's libraries.

    Raises ModelError.
    """
    file = model / "tokenizer.json"
    if not file.is_file():
        return Tokenisation.load(str(model)).counts
    from tokenizers import Tokenizer

    with library_errors(
        f"{file} cannot be read",
        why="how much of the records a study reads is counted in the model's tokens",
        fix="give the model's folder whole (`model` in site.toml), readable for whoever reads the records",
    ):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(one) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
