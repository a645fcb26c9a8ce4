"""How long the texts of records are in a model's tokens: in aggregate, for whoever holds them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

from ..model.library_errors import library_errors
from .records import Chat, PromptCompletion, Record, Text
from .tokenisation import Tokenisation

# Of so many records, anywhere in the file, so many characters each are read: a second's work, however many
# and however long the records are.
_RECORDS: Final = 256
_CHARACTERS: Final = 16_000


@dataclass(frozen=True, kw_only=True)
class TextLengths:
    """Tokens of some records' texts, what a model's template puts around them aside."""

    tokens: Sequence[float]

    @classmethod
    def of(cls, records: Sequence[Record], model: Path) -> "TextLengths":
        """Of a sample of ``records``, by the tokenizer in the folder ``model``. Raises ModelError."""
        sample = Random(0).sample(range(len(records)), min(len(records), _RECORDS))  # noqa: S311 (the same each time)
        texts = [text for number in sample if (text := _text_of(records[number]))]
        counted = _counter(model)([text[:_CHARACTERS] for text in texts])
        return cls(
            tokens=[tokens * max(1.0, len(text) / _CHARACTERS) for text, tokens in zip(texts, counted, strict=True)]
        )

    @property
    def median(self) -> float:
        """The tokens of a record in the middle; 0 where no record has a text."""
        return median(self.tokens) if self.tokens else 0.0

    def share_read(self, max_tokens: int) -> float:
        """Of all the tokens, the share that a study reads which reads ``max_tokens`` of each record.

        >>> TextLengths(tokens=[50, 150]).share_read(100)
        0.75
        """
        return sum(min(length, max_tokens) for length in self.tokens) / (sum(self.tokens) or 1.0)


def _text_of(record: Record) -> str:
    match record.content:
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
        return Tokenisation.load(str(model), max_tokens=1).counts
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
