"""Minimisation at work: a site's rules, applied to its records before they are tokenised, and to whose they are."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from ...common.data.record import Chat, Content, PromptCompletion, Record, SetAsideContent, Text
from ...common.errors import StudyError
from ...common.sources.identifiers import canonical
from ...common.sources.rows import has_surrogates
from ...common.sources.source import DataSource
from .dates import shifted
from .duplicates import Tokens, distinct, first_of_each, signature
from .hook import Hook
from .names import Names
from .numbers import without_numbers
from .patterns import Patterns, TooLongError
from .rules import Minimisation
from .spelling import plain

# HMAC under a site's secret of its own, of data that begins with a label.
Keyed = Callable[[bytes], bytes]
# The texts that are left of a record, or why there are none.
_Left = list[str] | SetAsideContent

MOST_DAYS: Final = 365
_DATES: Final = b"grandrounds/date-shift/v1\n"
_CHOICE: Final = b"grandrounds/record-choice/v1\n"
_RULES: Final = b"grandrounds/minimisation/v2\n"
_WHY: Final = "what the policy keeps out of records must not come in by another way"


class Minimiser:
    """A site's rules, ready to be applied; it may be called from several threads.

    *Formal guarantee.* What becomes of a record, and whether it is kept, follows from the records of its own patient,
    the patient's identifier, the rules and the site's secret. Nobody else's record plays a part: a patient more or less
    changes one unit of the cohort, as everywhere (MECHANISM.md, sensitivity). A site's own hook is held to it by a test
    (``Hook``). Only how long a pattern takes, which sets a record aside, also depends on the machine.
    """

    def __init__(self, rules: Minimisation, keyed: Keyed) -> None:
        """Raises DataError and StudyError where a file of names or a hook cannot be used."""
        self.rules = rules
        self._keyed = keyed
        self._patterns = Patterns(rules.replace)
        self._names = None if rules.names_file is None else Names.read(rules.names_file)
        self._hook = None if rules.hook is None else Hook(rules.hook)

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """Each record with what is left of it, in order; set aside with a reason where a rule cannot be applied.

        Raises StudyError and DataError where a rule can be applied to none.
        """
        if not self.rules.changes_texts:
            return list(records)
        left = [self._ruled(record) for record in records]
        if self._hook is not None:
            left = _hooked(self._hook, left)
        return [
            replace(record, content=_with(record.content, said)) for record, said in zip(records, left, strict=True)
        ]

    def keep(self, patient: str, digests: Sequence[bytes], tokens: Callable[[int], Tokens]) -> list[int]:
        """Which of one patient's records count, by number; none where they are too few.

        ``digests`` tell what records say apart, ``tokens`` gives a record's by its number. Of several that count once,
        the first stays, so that the records' order must follow from what they say.
        """
        chosen = first_of_each(digests) if self.rules.counts_once else list(range(len(digests)))
        if self.rules.near_duplicates is not None:
            signatures = [signature(tokens(number)) for number in chosen]
            chosen = [chosen[number] for number in distinct(signatures, self.rules.near_duplicates)]
        least, most = self.rules.records_per_patient.least, self.rules.records_per_patient.most
        if len(chosen) < least:
            return []
        if most is not None and len(chosen) > most:
            label = _CHOICE + canonical(patient).encode() + b"\n"
            chosen = sorted(sorted(chosen, key=lambda number: self._keyed(label + digests[number]))[:most])
        return chosen

    def days(self, patient: str) -> int:
        """By how many days the dates of a patient move: from -365 to 365, and never 0."""
        drawn = int.from_bytes(self._keyed(_DATES + canonical(patient).encode())) % (2 * MOST_DAYS)
        return drawn - MOST_DAYS + (drawn >= MOST_DAYS)

    @property
    def fingerprint(self) -> str:
        """Another one wherever rules, names, the hook's file or the site's secret are others: SHA-256 in hex.

        Of the secret, no more is in it than an HMAC under it.
        """
        stated = self.rules.model_dump(mode="json", exclude={"names_file"})
        names = b"" if self.rules.names_file is None else self.rules.names_file.read_bytes()
        source = b"" if self._hook is None else self._hook.source
        parts = [json.dumps(stated, sort_keys=True).encode(), names, source, self._keyed(_RULES)]
        return hashlib.sha256(_RULES + b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def _ruled(self, record: Record) -> _Left:
        if isinstance(record.content, SetAsideContent):
            return record.content
        try:
            return [self._without(text, record.patient_id) for text in texts_of(record.content)]
        except TooLongError:
            return SetAsideContent(reason="a pattern of minimise.replace takes too long on it")

    def _without(self, text: str, patient: str) -> str:
        text = self._patterns.without(plain(text))
        if self._names is not None:
            text = self._names.without(text)
        if self.rules.shift_dates:
            text = shifted(text, self.days(patient), day_first=self.rules.day_first)
        return without_numbers(text, day_first=self.rules.day_first) if self.rules.numbers else text


def check_columns(rules: Minimisation, source: DataSource) -> None:
    """Raises StudyError where texts are made of a column that is suppressed, in whatever case: to SQL all are one."""
    used = {column.casefold() for column in source.text_columns}
    for column in rules.suppress_columns:
        if column.casefold() in used:
            raise StudyError(
                f"the records of {source.name} are made of the column {column}, and minimise.suppress_columns has it",
                why=_WHY,
                fix="name other columns in [data] of site.toml, or take it out of the list in policy.toml",
            )


def texts_of(content: Content) -> tuple[str, ...]:
    """All that a record says, but for who speaks."""
    match content:
        case Text(text=text):
            return (text,)
        case PromptCompletion(prompt=prompt, completion=completion):
            return prompt, completion
        case Chat(messages=messages):
            return tuple(turn.content for turn in messages)
    return ()


def _hooked(hook: Hook, left: Sequence[_Left]) -> list[_Left]:
    given = iter(hook([text for texts in left if isinstance(texts, list) for text in texts]))
    made: list[_Left] = []
    for texts in left:
        if isinstance(texts, list):
            whole = [text for text in islice(given, len(texts)) if text is not None]
            fails = SetAsideContent(reason="the hook of minimise.hook fails on it")
            made.append(whole if len(whole) == len(texts) else fails)
        else:
            made.append(texts)
    return made


def _with(content: Content, texts: _Left) -> Content:
    """The content with other texts in the places of its own."""
    if isinstance(texts, SetAsideContent):
        return texts
    if not all(text.strip() for text in texts):
        return SetAsideContent(reason="nothing is left of it after minimisation")
    if any(map(has_surrogates, texts)):
        return SetAsideContent(reason="what minimisation makes of it is no UTF-8")
    match content:
        case Text():
            return Text(text=texts[0])
        case PromptCompletion():
            return PromptCompletion(prompt=texts[0], completion=texts[1])
        case Chat(messages=messages):
            return Chat(messages=tuple(replace(turn, content=text) for turn, text in zip(messages, texts, strict=True)))
    return content
