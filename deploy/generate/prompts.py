"""What synthetic notes begin with, and so what they are of: a text with places for type, age or complaint."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from ...common.errors import StudyError
from ...common.schema import Section as Table
from ...common.schema import read_toml, validated
from ...common.sources.columns import Template, as_text
from .form import Section

BUILTIN: Final = "prompts.demo.toml"
_PROMPT: Final = "prompt"
_WHY: Final = "every note begins with a prompt, which decides what the note is of"
_AS: Final = (
    'give each line an object with "prompt", and beside it what you want to find again, as {"prompt": "…", "age": 40}'
)


class PromptFile(Table):
    """Prompts as TOML: a text with names in braces, and for each name values of which one is drawn, all alike likely.

    ``together`` are values that belong together: one of these tables is drawn whole. ``sections`` stand in
    each note behind its prompt, in turn (``Filling``).
    """

    prompt: str
    sections: list[Section] = Field(default_factory=list)
    values: dict[str, Annotated[list[str | int], Field(min_length=1)]] = Field(default_factory=dict)
    together: list[dict[str, str | int]] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text that a note begins with, and the values in it, by name."""

    text: str
    controls: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Where prompts come from.

    Attributes:
        name: of the file, for people.
        sha256: of its bytes.
        template: the text with places.
        rows: values that belong together; never empty.
        values: of each other name those of which one is drawn.
        drawn: whether a row is drawn, or each taken in turn.
        sections: what each note has behind its prompt (``Filling``); none where the model alone says.
    """

    name: str
    sha256: str
    template: Template
    rows: Sequence[Mapping[str, str]]
    values: Mapping[str, Sequence[str]]
    drawn: bool
    sections: Sequence[Section] = ()

    @classmethod
    def builtin(cls) -> Self:
        """Those that fit the notes of the built-in synthetic patients."""
        file = resources.files(__package__).joinpath(BUILTIN)
        with resources.as_file(file) as path:
            return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a TOML file (``PromptFile``), or of JSON lines with a ``prompt`` each. Raises StudyError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unfit(path, error.strerror or "it cannot be read", "name another file with --prompts") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if path.suffix.lower() != ".toml":
            rows = tuple(_lines(path, data))
            template = Template.parse(_PROMPT)
            return cls(name=path.name, sha256=sha256, template=template, rows=rows, values={}, drawn=False)
        file = validated(PromptFile, read_toml(path, why=_WHY), source=path, why=_WHY)
        try:
            template = Template.parse(file.prompt)
        except ValueError as error:
            raise _unfit(path, f"prompt: {error}", "correct it") from error
        rows = tuple({name: as_text(value) for name, value in row.items()} for row in file.together) or ({},)
        values = {name: tuple(map(as_text, given)) for name, given in file.values.items()}
        missing = {name for name in template.names if not (values.get(name) or all(row.get(name) for row in rows))}
        if any(row.keys() != rows[0].keys() for row in rows):
            raise _unfit(path, "the tables of together have different names", "give all of them the same")
        if missing or template.is_column:
            none = "its prompt has no name in braces"
            what = none if template.is_column else f"its prompt has {{{min(missing)}}}, and no values of it"
            fix = 'name what varies in braces, and give values of each: values = { age = ["newborn", "40 year-old"] }'
            raise _unfit(path, what, fix)
        return cls(
            name=path.name,
            sha256=sha256,
            template=template,
            rows=rows,
            values=values,
            drawn=True,
            sections=file.sections,
        )

    def prompt(self, number: int, *, seed: int) -> Prompt:
        """The prompt of note ``number``, from 0 on: a function of these two alone, so that who goes on has the same."""
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 (what is drawn is public)
        row = rng.choice(self.rows) if self.drawn else self.rows[number % len(self.rows)]
        cells = {**{name: rng.choice(values) for name, values in self.values.items()}, **row}
        text = str(self.template.of(cells)).rstrip(" ")  # a tokenizer begins the next word with its space
        return Prompt(text=text, controls={name: value for name, value in cells.items() if name != _PROMPT})


def _lines(path: Path, data: bytes) -> "Sequence[Mapping[str, str]]":
    rows: list[Mapping[str, str]] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            raise _unfit(path, f"line {number} is no prompt", _AS)
        if rows and row.keys() != rows[0].keys():
            raise _unfit(path, f"line {number} has other names than the first", "give all lines the same")
        rows.append(row)
    if not rows:
        raise _unfit(path, "it has no prompt", _AS)
    return rows


def _row(line: bytes) -> Mapping[str, str] | None:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not str(row.get(_PROMPT) or "").strip():
        return None
    if any(isinstance(value, dict | list) for value in row.values()):
        return None
    return {str(name): as_text(value) for name, value in row.items()}


def _unfit(path: Path, what: str, fix: str) -> StudyError:
    return StudyError(f"{path.name} has no prompts that can be used: {what}", why=_WHY, fix=fix)
