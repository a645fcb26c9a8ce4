"""Tokenisation: a record becomes an example of fixed length, which looks the same whatever lies beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import DataError, GrandRoundsError, ModelError
from ..model.example import NO_LOSS, Example
from ..model.library_errors import library_errors
from .quarantine import Quarantine
from .records import Chat, PromptCompletion, Record, SetAsideContent, Text

# Beyond it, what is evaluated of a record is cut even where the model could read on: attention takes its square.
MAX_EVALUATED_TOKENS: Final = 8192
# A text is first cut to so many characters a token that is needed, and then to more, before it is read to its end.
_TOKEN_CHARACTERS: Final = 8
_LONG_TOKEN_CHARACTERS: Final = 64
# Where a text was cut, so many tokens may be others than the whole text's; they lie beyond those that are used.
_CUT_TOKENS: Final = 64
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

    def __init__(self, tokenizer: Any, *, max_tokens: int, vocabulary_size: int | None = None) -> None:
        """Raises ModelError where tokens are not the model's, which has ``vocabulary_size`` of them (None: unknown)."""
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._opening, self._closing = _frame(tokenizer)
        self._break = _break(tokenizer)
        self._marks_assistant = bool(_GENERATION_BLOCK.search(str(tokenizer.chat_template or "")))
        self._check_vocabulary()
        if self._marks_assistant:
            self._check_marks()

    @classmethod
    def load(cls, model: str, *, max_tokens: int, vocabulary_size: int | None = None) -> "Tokenisation":
        """With the tokenizer of a model folder or hub name. Raises ModelError; never runs code from the model."""
        return cls(load_tokenizer(model), max_tokens=max_tokens, vocabulary_size=vocabulary_size)

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
        """The record at fixed length.

        Raises DataError if it cannot be laid out, or has a token that the model does not have; ModelError without a
        chat template.
        """
        return self._example(*self._tokens(record, self.max_tokens), length=self.max_tokens)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of some texts has."""
        return [len(self._encode(text, len(text))) for text in texts]

    def evaluation_set(self, records: Sequence[Record], *, positions: int | None) -> EvaluationSet:
        """The records whole, for a model that can read ``positions`` tokens; None: any number. Raises as ``example``.

        ``max_tokens`` plays no part: what an adapter does to a record's end shows, whether it was trained there or not.
        """
        most = min(positions or MAX_EVALUATED_TOKENS, MAX_EVALUATED_TOKENS)
        laid_out = [self._tokens(record, most) for record in records]
        return EvaluationSet(
            examples=[self._example(*one, length=min(len(one[0]), most)) for one in laid_out],
            max_tokens=most,
            cut=sum(len(tokens) > most for tokens, _ in laid_out),
        )

    def _example(self, tokens: list[int], learnt: list[bool], *, length: int) -> Example:
        tokens, learnt = tokens[:length], learnt[:length]
        # Without effect: attention is causal and nothing follows the padding. A padding token may be no token of the
        # model's: it is often added to a tokenizer alone.
        pad = self._tokenizer.pad_token_id or 0
        token_ids = np.full(length, 0 if self._is_beyond(pad) else pad, dtype=np.int32)
        token_ids[: len(tokens)] = tokens
        labels = np.full(length, NO_LOSS, dtype=np.int32)
        labels[: len(tokens)] = np.where(np.asarray(learnt, dtype=bool), tokens, NO_LOSS)
        return Example(token_ids=token_ids, labels=labels)

    def _tokens(self, record: Record, most: int) -> tuple[list[int], list[bool]]:
        """The tokens of a record, or more than ``most`` of them; and for each whether it is to be learnt."""
        try:
            tokens, learnt = self._laid_out(record, most)
        except GrandRoundsError:
            raise
        except Exception:  # of the tokenizer's library, whose message may quote the record
            raise _refused(record, "the model's tokenizer refuses it") from None
        if self._is_beyond(max(tokens, default=0)):
            raise DataError(
                f"{record.position}: it has a token that the model does not have",
                why="the tokenizer knows it, and the model can neither read nor predict it",
                fix="take out of the record what is written like a special token, in angle or square brackets",
            )
        return tokens, learnt

    def _laid_out(self, record: Record, most: int) -> tuple[list[int], list[bool]]:
        match record.content:
            case Text(text=text):
                tokens = self._opening + self._ended(self._encode(text, most))
                return tokens, [True] * len(tokens)
            case PromptCompletion(prompt=prompt, completion=completion):
                # Tokenised apart, so that no token straddles the border between what is read and what is learnt.
                read = self._opening + self._encode(prompt, most)
                learnt = self._ended(self._continued(completion, most))
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
            return self._templated(turns)
        except Exception:  # templates raise what they like, and may quote the record: hence also `from None`
            raise _refused(record, "the model's chat template refuses these messages") from None

    def _templated(self, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
        laid_out = self._tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=self._marks_assistant
        )
        tokens = list(laid_out["input_ids"])
        learnt = [bool(mark) for mark in laid_out["assistant_masks"]] if self._marks_assistant else [True] * len(tokens)
        return tokens, learnt

    def _encode(self, text: str, most: int) -> list[int]:
        """The tokens of a text alone, or more than ``most`` of them: what nobody uses of a long text costs nothing.

        With none that the tokenizer puts around a text.
        """
        enough = most + _CUT_TOKENS
        for characters in (_TOKEN_CHARACTERS * enough, _LONG_TOKEN_CHARACTERS * enough, len(text)):
            tokens = self._tokenizer(text[:characters], add_special_tokens=False, verbose=False)["input_ids"]
            if characters >= len(text) or len(tokens) >= enough:
                break
        return list(tokens)

    def _continued(self, text: str, most: int) -> list[int]:
        """As ``_encode``, of a text that goes on from another: without the space that opens a text in some models."""
        if (
            self._break
            and (tokens := self._encode("\n" + text, most + len(self._break)))[: len(self._break)] == self._break
        ):
            return tokens[len(self._break) :]
        return self._encode(text, most)

    def _ended(self, tokens: list[int]) -> list[int]:
        """The tokens with what the tokenizer ends a text in, else an end-of-text token unless they or it have none."""
        end = self._tokenizer.eos_token_id
        if self._closing:
            return tokens + self._closing
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    def _is_beyond(self, token: int) -> bool:
        return self._vocabulary_size is not None and token >= self._vocabulary_size

    def _check_vocabulary(self) -> None:
        """Tokens that are added to a vocabulary may be beyond the model's, but not those that each record gets."""
        added = set(self._tokenizer.get_added_vocab().values())
        own = (token for token in self._tokenizer.get_vocab().values() if token not in added)
        needed = {*own, *self._opening, *self._ended([])}
        beyond = sorted(filter(self._is_beyond, needed))
        if beyond:
            raise ModelError(
                f"the tokenizer has {len(beyond)} tokens that the model, with {self._vocabulary_size}, does not have, "
                f"such as {self._tokenizer.convert_ids_to_tokens(beyond[0])!r} ({beyond[0]})",
                why="a record with one of them can be neither read nor predicted",
                fix="use the tokenizer that the model was trained with, or resize the model's embeddings to it",
            )

    def _check_marks(self) -> None:
        """Raises ModelError unless what is marked grows with the assistant's turn, and not with the user's."""
        if not self._tokenizer.is_fast:
            raise ModelError(
                "the chat template marks the assistant's turns, and the tokenizer cannot say which tokens these are",
                why="the loss is on the assistant's turns",
                fix="save a fast tokenizer (tokenizer.json) with the model",
            )
        try:
            usual, asked, answered = (
                sum(
                    self._templated([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}])[1]
                )
                for user, assistant in (("a", "b"), ("a a a", "b"), ("a", "b b b"))
            )
        except Exception:  # a template may know other roles, or ask for a system's turn; records show it
            return
        if asked != usual or answered <= usual:
            raise ModelError(
                "what the chat template marks ({% generation %}) is not what the assistant says",
                why="the loss is on the tokens that are marked: others would be learnt, or none",
                fix="mend the template, so that {% generation %} stands around the assistant's content, and no more",
            )


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model folder or hub name. Raises ModelError; never runs code from the model."""
    from transformers import AutoTokenizer

    with library_errors(
        f"the tokenizer of {model} cannot be loaded",
        why="records are trained on as the model's own tokens",
        fix="name a folder or hub model that holds its tokenizer and needs no code of its own",
    ):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and after it. Raises ModelError where it does not keep the text whole."""
    alone, framed = (
        list(tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]) for special in (False, True)
    )
    for start in range(len(framed) - len(alone) + 1):
        if framed[start : start + len(alone)] == alone:
            return framed[:start], framed[start + len(alone) :]
    raise ModelError(
        "the tokenizer gives other tokens of a text when it puts a beginning or an end to it",
        why="what is learnt would not be what is written",
        fix="use the tokenizer that the model was trained with",
    )


def _break(tokenizer: Any) -> list[int]:
    """The tokens of a line break, if the tokenizer puts a space before a text and none behind a break; else none."""
    line, broken, alone = (
        list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in ("\n", "\na", "a")
    )
    return line if broken[: len(line)] == line and broken[len(line) :] != alone else []


def _refused(record: Record, what: str) -> DataError:
    return DataError(
        f"{record.position}: {what}",
        why="the model would be trained on a layout it does not know",
        fix="use the roles, and their order, that the model's documentation gives",
    )
