"""What comes in as JSON or TOML: a strict base class, the reader of TOML, and what is said of its fields."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from .errors import StudyError

WHY_STUDY = "every site signs these parameters, and the privacy claim is computed from them"

ModelT = TypeVar("ModelT", bound=BaseModel)

ValueT = TypeVar("ValueT")

# tomllib's memory grows with the square of the parts of a dotted key.
_MAX_TOML_BYTES = 1 << 18

_MAX_DOTS = 200

_OWN: Final = "own"  # the kind of an error that is in our words


@dataclass(frozen=True)
class Spelt:
    """Annotates text of one ``pattern``, which ``words`` describe to whoever wrote another."""

    pattern: str
    words: str
    max_length: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The text's schema, all of whose errors are these words."""
        text = core_schema.str_schema(pattern=self.pattern, max_length=self.max_length, strict=True)
        # Around the text alone: around Python's code it would turn Ctrl-C, too, into these words.
        spelt = core_schema.custom_error_schema(text, custom_error_type=_OWN, custom_error_message=self.words)
        return core_schema.no_info_after_validator_function(self._printable, spelt)

    def _printable(self, text: str) -> str:
        """The text, unless it has a character that is newer than this Python, which would show it by its number."""
        if not text.isprintable():
            raise PydanticCustomError(_OWN, self.words)
        return text


# One line of words that can be seen, a single space between them: nothing in it ends the line, moves the cursor, turns
# the direction of text, or pushes what follows out of sight.
_WORD: Final = r"[\p{L}\p{M}\p{N}\p{P}\p{S}]+"
LINE: Final = f"^{_WORD}( {_WORD})*$"
Words = Annotated[str, Spelt(LINE, "needs one line of at most 200 visible characters, single spaces between them", 200)]

# As PEP 440 spells a version.
Version = Annotated[str, Spelt(r"^[0-9A-Za-z.+!_-]{1,64}$", "needs a version, as 1.2.3")]

Address = Annotated[
    str, Spelt(r"^[A-Za-z0-9.:\[\]_-]{1,262}$", "needs host:port, as example.org:9092, an IPv6 host in brackets")
]


class Section(BaseModel):
    """A part of a study: frozen; unknown fields and values of another type are refused, for "no" is not false.

    A validator that judges several fields raises a ValueError that begins with one of their names and a colon.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Where a command's help has the options of this section; "" is its first panel.
    panel: ClassVar[str] = ""


@dataclass(frozen=True)
class Help:
    """What is said of a field, on the command line and beside it in a file: declared in its annotation.

    ``unset`` says what follows where a field has no default and is left out; ``example`` is some value of it, as TOML.
    """

    text: str
    _: KW_ONLY
    unset: str = ""
    example: str = ""


@dataclass(frozen=True)
class Option(Help):
    """A field that is an option too, under its own name or ``name``, of all commands that take studies or ``only`` one.

    ``panel`` is another than its section's.
    """

    _: KW_ONLY
    name: str = ""
    metavar: str | None = None
    only: str = ""
    panel: str | None = None


def help_of(field: FieldInfo) -> Help:
    """What is said of a field that says something."""
    return next(said for said in field.metadata if isinstance(said, Help))


def kind_of(annotation: Any) -> Any:
    """A field's type without None, and without what is said of it.

    Of several types, as of ``tuple[str, ...] | str``, the first.

    >>> kind_of(Annotated[int | None, "a number"])
    <class 'int'>
    """
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    is_wrapped = get_origin(annotation) in (Annotated, Union, UnionType)
    return kind_of(kinds[0]) if is_wrapped else annotation


def known(value: ValueT | None) -> ValueT:
    """A field that a complete study has: states to the type checker what ``complete_study`` or a Manifest saw to."""
    assert value is not None  # noqa: S101
    return value


def read_toml(path: Path, *, why: str = WHY_STUDY) -> dict[str, Any]:
    """The tables of a TOML file; raises StudyError with the place of a syntax error."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TOML_BYTES + 1).decode("utf-8")
        if len(text) > _MAX_TOML_BYTES or any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
            raise ValueError("it is larger than any study, or names something by far too many parts")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # tomllib lets integers and nesting raise what they like
        reason = getattr(error, "strerror", None) or error
        raise StudyError(f"{path} cannot be read: {reason}", why=why, fix="correct the file or its name") from error


def as_toml(value: Any) -> str:
    """A value as TOML has it, a table on one line.

    >>> as_toml({"files": [Path("a")], "where": {"note type": "DS", "first": 7}})
    '{ files = ["a"], where = { "note type" = "DS", first = 7 } }'
    """
    match value:
        case Mapping():
            return f"{{ {', '.join(f'{_key(name)} = {as_toml(item)}' for name, item in value.items())} }}"
        case list() | tuple():
            return f"[{', '.join(map(as_toml, value))}]"
        case date():
            return value.isoformat()
    # JSON's strings, numbers and booleans are TOML's as well.
    return json.dumps(value, ensure_ascii=False, default=str)


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def read_settings(model: type[ModelT], path: Path, *, made_by: str) -> ModelT:
    """A folder's settings, from its TOML file, which the command ``made_by`` writes.

    Raises StudyError that names the field, or says that this is no such folder.
    """
    try:
        return validated(model, read_toml(path), source=path)
    except StudyError as error:
        missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        raise StudyError(
            error.what,
            why="keys, data and programs are where it says; none of it is guessed",
            fix=f"give the folder that `{made_by}` made" if missing else error.fix,
        ) from error


def validated(
    model: type[ModelT],
    fields: Mapping[str, Any],
    *,
    source: Path | None = None,
    table: str = "",
    why: str = WHY_STUDY,
    fix: str = "correct the named fields",
) -> ModelT:
    """``model`` from untrusted fields, the ``table`` of the file ``source`` if they are one of a file.

    Raises StudyError that names the file and each wrong field, in dotted form, with its value and what it needs.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        where, at = "" if source is None else f"{source}: ", f"{table}." if table else ""
        items = error.errors(include_url=False)
        # A list is called too short where one of its items is wrong.
        wrong = {item["loc"][:end] for item in items for end in range(len(item["loc"]))}
        told = [item for item in items if item["type"] != "too_short" or item["loc"] not in wrong]
        problems = "; ".join(at + _problem(item, model) for item in told)
        raise StudyError(f"{where}{problems}", why=why, fix=fix) from error


def _problem(item: ErrorDetails, model: type[BaseModel]) -> str:
    # In brackets stand a table's keys, and which type of several was taken.
    place = ".".join(str(part) for part in item["loc"] if not str(part).startswith("["))
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"{place}: no such field{_meant(place, model)}"
    if kind == "missing":
        return f"{place}: it is missing"
    if kind == "value_error":
        said = str(item["ctx"]["error"])
        if isinstance(value, Mapping | BaseModel):  # of several of its fields
            return f"{place}.{said}".lstrip(".")
    elif kind == _OWN:
        said = item["msg"]
    else:
        said = _NEEDED.get(kind, "is nothing that this field can have").format_map(item.get("ctx", {}))
        said = said.replace("'", '"')  # of a choice
    return f"{place or 'it'} = {_shown(value)}: {said}"


_TRUE_OR_FALSE, _WHOLE, _NUMBER = "needs true or false", "needs a whole number", "needs a number"
_TEXT, _LIST, _TABLE = "needs text, in quotes", "needs a list, in brackets", "needs a table"
# By the kind of error that pydantic finds: none of its own words are shown.
_NEEDED: Final = {
    "bool_type": _TRUE_OR_FALSE,
    "bool_parsing": _TRUE_OR_FALSE,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": "needs a smaller whole number",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "needs a finite number",
    "string_type": _TEXT,
    "path_type": _TEXT,
    "string_too_short": "needs text of {min_length} characters or more",
    "string_too_long": "needs text of {max_length} characters or fewer",
    "tuple_type": _LIST,
    "list_type": _LIST,
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "too_short": "needs {min_length} or more, and has {actual_length}",
    "too_long": "needs {max_length} or fewer, and has {actual_length}",
    "greater_than": "needs more than {gt:,.10g}",
    "greater_than_equal": "needs {ge:,.10g} or more",
    "less_than": "needs less than {lt:,.10g}",
    "less_than_equal": "needs {le:,.10g} or less",
    "literal_error": "needs {expected}",
}


def _meant(place: str, model: type[BaseModel]) -> str:
    """The field that may have been meant: the one spelt most like it, rather here than elsewhere."""
    path, _, wrong = re.sub(r"\.[0-9]+", "", place).rpartition(".")
    names = [name.rpartition(".") for name in _names(model, "")]
    near = difflib.get_close_matches(wrong, {name for _, _, name in names}, n=1, cutoff=0.8)
    found = sorted((there != path, there, dot, name) for there, dot, name in names if name in near)
    return f"; did you mean {''.join(found[0][1:])}?" if found else ""


def _names(model: type[BaseModel], place: str) -> Iterator[str]:
    """The dotted names of all fields."""
    for name, field in model.model_fields.items():
        yield f"{place}{name}"
        kind = kind_of(field.annotation)
        kind = kind_of(get_args(kind)[0]) if get_origin(kind) is tuple else kind
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{place}{name}.")


_PASSWORD: Final = re.compile(r"""(?<=://)[^"\s]*(?=@) | (?<=password=)[^"&\s]*""", re.VERBOSE)


def _shown(value: object) -> str:
    """A value as it is written in a file, but for the password of a URL, which somebody may have put into any field."""
    if isinstance(value, float):  # nan and inf are TOML, and no JSON
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return "(too large to show)"
    text = _PASSWORD.sub("…", text)
    return text if len(text) <= 200 else f"{text[:200]}…"
