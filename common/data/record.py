"""A record: whose it is, where it stands, and what it says: a text, a prompt with its completion, or a chat."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Text:
    """A whole text; every token of it is learnt."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PromptCompletion:
    """A prompt, which is only read, and its completion, which is learnt."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Turns of a chat, to be laid out by the model's own chat template."""

    messages: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class SetAsideContent:
    """What cannot be read: the record keeps its place, and nothing is learnt from it.

    ``reason`` is why, without a word of it, where a quarantine has not been told yet.
    """

    reason: str = ""


Content = Text | PromptCompletion | Chat | SetAsideContent


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of one patient; ``position`` is its file's name with the line or row. Printing shows nothing else.

    ``other_ids`` are further identifiers that the source knows to be the patient's. ``traits`` say whom it is about, of
    held-out records alone.
    """

    patient_id: str = field(repr=False)
    position: str
    content: Content = field(repr=False)
    other_ids: tuple[str, ...] = field(default=(), repr=False)
    traits: Mapping[str, str] = field(default_factory=dict, repr=False)
