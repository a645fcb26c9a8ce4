"""Tokenisation: a record becomes tokens, of which some are learnt: the same whatever lies beside it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import DataError, ModelError
from ..model.example import Example
from ..model.library_errors import library_errors
from .groups import groups_of
from .record import Chat, PromptCompletion, Record, SetAsideContent, Text
from .windows import Layout, Span, Window, windows_of

# Beyond it, what is evaluated of a record is cut even where the model could read on: attention takes its square.
MAX_EVALUATED_TOKENS: Final = 8192
_PROBE: Final = ("The patient's pulse: 72/min.\n\n- no  pain", " a", "a", "Gr\u00fc\u00dfe \u2603")
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSet:
    """Held-out records as examples of their own lengths: whole, however little of a record a study trains on.

    Attributes:
        examples: one for each record.
        max_tokens: at which a record is cut, because the model can read no further or at ``MAX_EVALUATED_TOKENS``.
        cut: how many records were longer.
        patients: whose each is.
        groups: by trait, in which group of people each is (``groups_of``).
    """

    examples: Sequence[Example]
    max_tokens: int
    cut: int
    patients: Sequence[str]
    groups: Mapping[str, Sequence[str | None]]


class Tokenisation:
    """Records -> tokens, through one model's tokenizer and, for conversations, its chat template.

    The loss is on every token of a ``text``, on the ``completion`` only, and in ``messages`` on the assistant's turns
    where the template marks them (``{% generation %}``), else on the whole conversation. Text and completion end in
    the model's end-of-text token.
    """

    def __init__(self, tokenizer: Any, *, vocabulary_size: int | None = None) -> None:
        """Raises ModelError where tokens are not the model's, which has ``vocabulary_size`` of them (None: unknown)."""
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._opening, self._closing = _frame(tokenizer)
        self._break = _break(tokenizer)
        self._marks_assistant = bool(_GENERATION_BLOCK.search(str(tokenizer.chat_template or "")))
        self._encode_batch = _batch_encoder(tokenizer)
        self._size = 1 + max(self._check_vocabulary(), (vocabulary_size or 0) - 1)
        if self._marks_assistant:
            self._check_marks()

    @classmethod
    def load(cls, model: str, *, vocabulary_size: int | None = None) -> "Tokenisation":
        """With the tokenizer of a model folder or hub name. Raises ModelError; never runs code from the model."""
        return cls(load_tokenizer(model), vocabulary_size=vocabulary_size)

    @property
    def size(self) -> int:
        """A bound on its tokens, from 0 on."""
        return self._size

    def layouts(self, records: Sequence[Record]) -> list[Layout | DataError]:
        """Each record laid out whole, or why it cannot be: the same as alone, in less time."""
        texts = [text for record in records for text in self._texts(record)]
        try:
            encoded = iter(self._encode_batch(texts))
            return [self._laid_out(record, [next(encoded) for _ in self._texts(record)]) for record in records]
        except Exception:  # of the tokenizer's library, over one of them: which, is found one by one
            return [self._alone(record) for record in records]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of some texts has."""
        return [len(tokens) for tokens in self._encode_batch(texts)]

    def evaluation_set(self, records: Sequence[Record], *, positions: int | None) -> EvaluationSet:
        """The records whole, for a model that can read ``positions`` tokens; None: any number.

        No study's ``max_tokens`` plays a part: what an adapter does to a record's end shows, whether it was trained
        there or not. Raises DataError where a record cannot be laid out, and ModelError as ``layouts`` does.
        """
        most = min(positions or MAX_EVALUATED_TOKENS, MAX_EVALUATED_TOKENS)
        whole = [_whole(layout) for layout in self.layouts(records)]
        return EvaluationSet(
            examples=[_beginning(window, most).example(min(len(window.tokens), most)) for window in whole],
            max_tokens=most,
            cut=sum(len(window.tokens) > most for window in whole),
            patients=[record.patient_id for record in records],
            groups=groups_of(records),
        )

    def _texts(self, record: Record) -> list[str]:
        """What the tokenizer is to read of a record, one text after another."""
        match record.content:
            case Text(text=text):
                return [text]
            case PromptCompletion(prompt=prompt, completion=completion):
                # Tokenised apart, so that no token straddles the border between what is read and what is learnt; and
                # as a text that goes on, so without the space that opens a text in some models.
                return [prompt, "\n" + completion, completion] if self._break else [prompt, completion]
        return []

    def _laid_out(self, record: Record, encoded: Sequence[Sequence[int]]) -> Layout | DataError:
        """The layout of a record whose texts are ``encoded``."""
        opening, prompt = self._opening, 0
        match record.content:
            case Text():
                tokens, learnt = self._ended(list(encoded[0])), None
            case PromptCompletion():
                prompt = len(encoded[0])
                tokens, learnt = [*encoded[0], *self._ended(self._continued(encoded[1:]))], None
            case Chat():
                opening = []
                found = self._chat_tokens(record, record.content)
                if isinstance(found, DataError):
                    return found
                tokens, learnt = found
            case SetAsideContent(reason=reason):
                return _refused(record, reason or "it could not be read")
        if self._is_beyond(max(tokens, default=0)):
            return DataError(
                f"{record.position}: it has a token that the model does not have",
                why="the tokenizer knows it, and the model can neither read nor predict it",
                fix="take out of the record what is written like a special token, in angle or square brackets",
            )
        spans = ((prompt, len(tokens)),) if learnt is None else _spans(learnt)
        return Layout(opening=opening, tokens=np.array(tokens, dtype=np.int32), learnt=spans, prompt=prompt)

    def _alone(self, record: Record) -> Layout | DataError:
        try:
            encoded = [self._encode_batch([text])[0] for text in self._texts(record)]
        except Exception:  # whose message may quote the record
            return _refused(record, "the model's tokenizer refuses it")
        return self._laid_out(record, encoded)

    def _chat_tokens(self, record: Record, chat: Chat) -> tuple[list[int], list[bool]] | DataError:
        if not self._tokenizer.chat_template:
            return DataError(
                f"{record.position}: the model has no chat template",
                why="records with messages are laid out by it",
                fix="choose a model with one, or give text, or prompt and completion",
            )
        turns = [{"role": message.role, "content": message.content} for message in chat.messages]
        try:
            return self._templated(turns)
        except Exception:  # templates raise what they like, and may quote the record
            return _refused(record, "the model's chat template refuses these messages")

    def _templated(self, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
        laid_out = self._tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=self._marks_assistant
        )
        tokens = list(laid_out["input_ids"])
        learnt = [bool(mark) for mark in laid_out["assistant_masks"]] if self._marks_assistant else [True] * len(tokens)
        return tokens, learnt

    def _continued(self, encoded: Sequence[Sequence[int]]) -> Sequence[int]:
        """The tokens of a text that goes on from another: as behind a break, if it keeps the break apart, or alone."""
        if self._break and list(encoded[0][: len(self._break)]) == self._break:
            return encoded[0][len(self._break) :]
        return encoded[-1]

    def _ended(self, tokens: Sequence[int]) -> list[int]:
        """The tokens with what the tokenizer ends a text in, else an end-of-text token unless they or it have none."""
        end = self._tokenizer.eos_token_id
        if self._closing:
            return [*tokens, *self._closing]
        return list(tokens) if end is None or list(tokens[-1:]) == [end] else [*tokens, end]

    def _is_beyond(self, token: int) -> bool:
        return self._vocabulary_size is not None and token >= self._vocabulary_size

    def _check_vocabulary(self) -> int:
        """The last of all tokens, which need not be as many: some tokenizers leave numbers out.

        Tokens that are added to a vocabulary may be beyond the model's, but not those that each record gets.
        """
        added, every = set(self._tokenizer.get_added_vocab().values()), self._tokenizer.get_vocab().values()
        own = (token for token in every if token not in added)
        needed = {*own, *self._opening, *self._ended([])}
        beyond = sorted(filter(self._is_beyond, needed))
        if beyond:
            raise ModelError(
                f"the tokenizer has {len(beyond)} tokens that the model, with {self._vocabulary_size}, does not have, "
                f"such as {self._tokenizer.convert_ids_to_tokens(beyond[0])!r} ({beyond[0]})",
                why="a record with one of them can be neither read nor predicted",
                fix="use the tokenizer that the model was trained with, or resize the model's embeddings to it",
            )
        return max(every, default=0)

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


def _batch_encoder(tokenizer: Any) -> Callable[[Sequence[str]], Sequence[Sequence[int]]]:
    """What gives the tokens of texts alone: the library's own batches where they are the tokenizer's, in threads."""

    def one_by_one(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "encode_batch_fast"):
        return one_by_one
    backend.no_truncation()
    backend.no_padding()

    def batch(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]

    try:
        return batch if list(map(list, one_by_one(_PROBE))) == batch(_PROBE) else one_by_one
    except Exception:  # a tokenizer that reads no such text is left to the records
        return one_by_one


def _whole(layout: Layout | DataError) -> Window:
    if isinstance(layout, DataError):
        raise layout
    return windows_of(layout, max_tokens=len(layout.opening) + max(len(layout.tokens), 1), overlap=0)[0]


def _beginning(window: Window, most: int) -> Window:
    learnt = tuple((start, min(end, most)) for start, end in window.learnt if start < most)
    return Window(tokens=window.tokens[:most], learnt=learnt)


def _spans(marks: Sequence[bool]) -> tuple[Span, ...]:
    """The stretches of marks that are true.

    >>> _spans([False, True, True, False, True])
    ((1, 3), (4, 5))
    """
    edges = np.flatnonzero(np.diff(np.array([False, *marks, False], dtype=np.int8))).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


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
