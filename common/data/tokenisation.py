"""Tokenisation: a record becomes an example of fixed length, which looks the same whatever lies beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import DataError, GrandRoundsError, ModelError
from ..model.example import NO_LOSS, Example
from .quarantine import Quarantine
from .records import Chat, PromptCompletion, Record, SetAsideContent, Text

# Beyond it, what is evaluated of a record is cut even where the model could read on: attention takes its square.
MAX_EVALUATED_TOKENS: Final = 8192
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSet:
    """Held-out records as examples of their own lengths: whole, however little of a record a study trains on.

    Attributes:
        examples: one for each record.
        max_tokens: at which a record is cut, because the model can read no further or at ``MAX_EVALUATED_TOKENS``.
        cut: how many records were longer.
    """

    examples: Sequence[Example]
    max_tokens: int
    cut: int


class Tokenisation:
    """Records -> examples, through one model's tokenizer and, for conversations, its chat template.

    The loss is on every token of a ``text``, on the ``completion`` only, and in ``messages`` on the assistant's turns
    where the template marks them (``{% generation %}``), else on the whole conversation. Text and completion end in
    the model's end-of-text token where there is room; what exceeds ``max_tokens`` is cut off at the end.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._marks_assistant = bool(_GENERATION_BLOCK.search(str(tokenizer.chat_template or "")))

    @classmethod
    def load(cls, model: str, *, max_tokens: int) -> "Tokenisation":
        """With the tokenizer of a model folder or hub name. Raises ModelError; never runs code from the model."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except Exception as error:  # each tokenizer library has its own, the plain Exception among them
            raise ModelError(
                f"the tokenizer of {model} cannot be loaded ({type(error).__name__})",
                why="records are trained on as the model's own tokens",
                fix="name a folder or hub model that holds its tokenizer and needs no code of its own",
            ) from error
        return cls(tokenizer, max_tokens=max_tokens)

    def examples(self, records: Sequence[Record], quarantine: Quarantine | None = None) -> list[Example]:
        """One example a record, in order. Raises DataError (position only) or ModelError as ``example`` does.

        With a ``quarantine``, what ``example`` refuses is noted there, and is a padding in its place: a zero in its
        unit's mean. So is a record that was set aside before. Where most records are refused, it is raised all the
        same, for then the model does not fit the study.
        """
        if quarantine is None:
            return [self.example(record) for record in records]
        made, refused = [], []
        for record in records:
            try:
                is_readable = not isinstance(record.content, SetAsideContent)
                made.append(self.example(record) if is_readable else Example.padding(self.max_tokens))
            except DataError as error:
                refused.append(error)
                quarantine.add(record.position, error.what.removeprefix(f"{record.position}: "))
                made.append(Example.padding(self.max_tokens))
        if 2 * len(refused) > len(records):
            raise refused[0]
        return made

    def example(self, record: Record) -> Example:
        """The record at fixed length. Raises DataError if it cannot be laid out, ModelError without a chat template."""
        return self._example(*self._tokens(record), length=self.max_tokens)

    def evaluation_set(self, records: Sequence[Record], *, positions: int | None) -> EvaluationSet:
        """The records whole, for a model that can read ``positions`` tokens; None: any number. Raises as ``example``.

        ``max_tokens`` plays no part: what an adapter does to a record's end shows, whether it was trained there or not.
        """
        most = min(positions or MAX_EVALUATED_TOKENS, MAX_EVALUATED_TOKENS)
        laid_out = [self._tokens(record) for record in records]
        return EvaluationSet(
            examples=[self._example(*one, length=min(len(one[0]), most)) for one in laid_out],
            max_tokens=most,
            cut=sum(len(tokens) > most for tokens, _ in laid_out),
        )

    def _example(self, tokens: list[int], learnt: list[bool], *, length: int) -> Example:
        tokens, learnt = tokens[:length], learnt[:length]
        pad = self._tokenizer.pad_token_id or 0  # without effect: attention is causal and nothing follows the padding
        token_ids = np.full(length, pad, dtype=np.int32)
        token_ids[: len(tokens)] = tokens
        labels = np.full(length, NO_LOSS, dtype=np.int32)
        labels[: len(tokens)] = np.where(np.asarray(learnt, dtype=bool), tokens, NO_LOSS)
        return Example(token_ids=token_ids, labels=labels)

    def _tokens(self, record: Record) -> tuple[list[int], list[bool]]:
        """All tokens of a record, and for each whether it is to be learnt."""
        try:
            return self._laid_out(record)
        except GrandRoundsError:
            raise
        except Exception:  # of the tokenizer's library, whose message may quote the record
            raise _refused(record, "the model's tokenizer refuses it") from None

    def _laid_out(self, record: Record) -> tuple[list[int], list[bool]]:
        match record.content:
            case Text(text=text):
                tokens = self._ended(self._encode(text, special=True))
                return tokens, [True] * len(tokens)
            case PromptCompletion(prompt=prompt, completion=completion):
                # Tokenised apart, so that no token straddles the border between what is read and what is learnt.
                read = self._encode(prompt, special=True)
                learnt = self._ended(self._encode(completion, special=False))
                return read + learnt, [False] * len(read) + [True] * len(learnt)
            case Chat():
                return self._chat_tokens(record, record.content)
            case SetAsideContent():
                raise _refused(record, "it could not be read")

    def _chat_tokens(self, record: Record, chat: Chat) -> tuple[list[int], list[bool]]:
        if not self._tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template",
                why="records with messages are laid out by it",
                fix="choose a model with one, or give text, or prompt and completion",
            )
        turns = [{"role": message.role, "content": message.content} for message in chat.messages]
        try:
            laid_out = self._tokenizer.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=self._marks_assistant
            )
        except Exception:  # templates raise what they like, and may quote the record: hence also `from None`
            raise _refused(record, "the model's chat template refuses these messages") from None
        tokens = list(laid_out["input_ids"])
        learnt = [bool(mark) for mark in laid_out["assistant_masks"]] if self._marks_assistant else [True] * len(tokens)
        return tokens, learnt

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _ended(self, tokens: list[int]) -> list[int]:
        """The tokens with an end-of-text token, unless they have it or the model has none."""
        end = self._tokenizer.eos_token_id
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]


def _refused(record: Record, what: str) -> DataError:
    return DataError(
        f"{record.position}: {what}",
        why="the model would be trained on a layout it does not know",
        fix="use the roles, and their order, that the model's documentation gives",
    )
