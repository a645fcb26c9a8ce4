"""What comes in as JSON or TOML: a strict base class, the reader of TOML, and what is said of its fields."""

import tomllib
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from .errors import StudyError

WHY_STUDY = "every site signs these parameters, and the privacy claim is computed from them"

ModelT = TypeVar("ModelT", bound=BaseModel)

ValueT = TypeVar("ValueT")

# tomllib's memory grows with the square of the parts of a dotted key.
_MAX_TOML_BYTES = 1 << 18

_MAX_DOTS = 200

# One line of words that can be seen, a single space between them: nothing in it ends the line, moves the cursor, turns
# the direction of text, or pushes what follows out of sight.
_WORD = r"[\p{L}\p{M}\p{N}\p{P}\p{S}]+"
Line = Annotated[str, Field(pattern=f"^{_WORD}( {_WORD})*$")]
Words = Annotated[Line, Field(max_length=200)]

# As PEP 440 spells a version.
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z.+!_-]{1,64}$")]

# host:port, an IPv6 host in brackets.
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]_-]{1,262}$")]


class Section(BaseModel):
    """A part of a study: frozen; unknown fields and values of another type are refused, for "no" is not false."""

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

    >>> kind_of(Annotated[int | None, "a number"])
    <class 'int'>
    """
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    is_wrapped = get_origin(annotation) is Annotated or NoneType in get_args(annotation)
    return kind_of(kinds[0]) if is_wrapped else annotation


def known(value: ValueT | None) -> ValueT:
    """A field that a complete study has: states to the type checker what ``complete_study`` or a Manifest saw to."""
    assert value is not None  # noqa: S101
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises StudyError with the place of a syntax error."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TOML_BYTES + 1).decode("utf-8")
        if len(text) > _MAX_TOML_BYTES or any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
            raise ValueError("it is larger than any study, or names something by far too many parts")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # tomllib lets integers and nesting raise what they like
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{path} cannot be read: {reason}", why=WHY_STUDY, fix="correct the file or its name"
        ) from error


def read_settings(model: type[ModelT], path: Path, *, made_by: str) -> ModelT:
    """A folder's settings, from its TOML file, which the command ``made_by`` writes.

    Raises StudyError that names the field, or says that this is no such folder.
    """
    try:
        return validated(model, read_toml(path))
    except StudyError as error:
        missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        raise StudyError(
            error.what if str(path) in error.what else f"{path}: {error.what}",
            why="keys, data and programs are where it says; none of it is guessed",
            fix=f"give the folder that `{made_by}` made" if missing else error.fix,
        ) from error


def validated(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """``model`` from untrusted fields; raises StudyError that names each wrong field and its value."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise StudyError(_problems(error), why=WHY_STUDY, fix="correct the named fields") from error


def _problems(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problems.append(f"{place}: no such field")
        elif place and item["type"] != "missing":
            problems.append(f"{place} = {_shown(item['input'])}: {message}")
        else:
            problems.append(f"{place}: {message}".removeprefix(": "))
    return "; ".join(problems)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "(too large to show)"
    return text if len(text) <= 200 else f"{text[:200]}…"
