"""Options that are fields: made from what the sections of a study declare of each, for ``simulate`` and ``plan``."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

import click
import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:  # declarations load pydantic and numpy, which `grandrounds --help` does not need
    from pydantic.fields import FieldInfo

    from ...common.schema import Option, Section

ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file; options given beside it win.")]
# What is given for one site, a number or a file, or for one column.
_NAMED: Mapping[Any, str] = {int: "SITE=N", Path: "SITE=FILE", str: "COLUMN=NAME"}
_EXAMPLES: Mapping[Any, str] = {int: "north=200", Path: "north=north.jsonl", str: "text=note"}
# Text is taken for all others; of bool, click makes a flag.
_TYPES: Mapping[Any, Any] = {int: click.INT, float: click.FLOAT, Path: click.Path(path_type=Path), bool: None}


class StudyCommand(TyperCommand):
    """A command that has, beside its own options, one for each field of a study that is declared as one.

    Its context's ``obj`` has the tables of those that were given. ``proposed`` says, by the name of a field, what the
    command takes where it is left out, if that is not the field's default (which stands for ``{}``).
    """

    proposed: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def _fields(self) -> "list[FieldOption]":
        from ...common.schema import Option, help_of
        from ...common.study.study import PANELS, Study
        from ..simulation.settings import Simulation

        sections: dict[str, type[Section]] = {"simulation": Simulation, **Study.sections()}
        options = [
            FieldOption((section, name), field, option, model.panel, self.proposed.get(name, "{}").format(option.unset))
            for section, model in sections.items()
            for name, field in model.model_fields.items()
            if isinstance(option := help_of(field), Option) and option.only in ("", self.name)
        ]
        return sorted(options, key=lambda option: ("", *PANELS).index(option.panel))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The fields' options, then the command's own."""
        return [*self._fields, *super().get_params(ctx)]

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command. Raises StudyError where an option says nothing of a site."""
        ctx.obj = {}
        for field in self._fields:
            section, name = field.place
            ctx.obj.setdefault(section, {})[name] = field.value(ctx.params.pop(field.key))
        return super().invoke(ctx)


class FieldOption(TyperOption):
    """The option of the field at ``place``. Ranges are not its own: the field judges what was given."""

    def __init__(self, place: tuple[str, str], field: "FieldInfo", option: "Option", panel: str, unset: str) -> None:
        from ...common.schema import kind_of

        kind = kind_of(field.annotation)
        self.place, self.key = place, "_".join(place)
        self.panel = panel if option.panel is None else option.panel
        self._is_flag, self._origin = kind is bool, get_origin(kind)
        self._default = field.get_default(call_default_factory=True)
        self._takes_text = kind is not field.annotation and str in map(kind_of, get_args(field.annotation))
        kind_of_each = kind_of(get_args(kind)[1]) if self._origin is dict else None
        self._value_kind: Any = kind_of_each if kind_of_each in (None, int, str) else Path
        super().__init__(
            param_decls=[self.key, f"--{option.name or place[1].replace('_', '-')}"],
            type=click.Choice(get_args(kind)) if self._origin is Literal else _TYPES.get(kind, click.STRING),
            is_flag=self._is_flag or None,
            multiple=self._origin in (tuple, dict),
            metavar=option.metavar or _NAMED.get(self._value_kind),
            help=f"{option.text}{self._left_out(unset)}.",
            rich_help_panel=self.panel,
        )

    def _left_out(self, unset: str) -> str:
        from ...common.study.builtin import TUNED

        section, name = self.place
        default = unset or self._default
        if default in (None, {}) or self._is_flag:
            return ""
        tuned = TUNED.get(section, {}).get(name, default)
        if tuned == default:
            return f" (default {_shown(default)})"
        return f" (default {_shown(tuned)} as the built-in model is tuned, else {_shown(default)})"

    def value(self, given: Any) -> Any:
        """What the field is given: a flag turns its default round; None, {} or () if the option was not there."""
        if self._is_flag:
            return not self._default if given else None
        if self._origin is tuple:
            if self._takes_text and len(given) == 1 and not re.fullmatch(r"[\w., ]+", given[0]):
                return given[0]
            return tuple(part.strip() for text in given for part in text.split(","))
        if self._origin is not dict:
            return given
        if self._value_kind is Path and len(given) == 1 and "=" not in given[0]:
            return Path(given[0])  # of no site alone: the field says whether it takes one
        return named(self.opts[0], given, self._value_kind)


def _shown(default: Any) -> str:
    """As it would be given."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def named(flag: str, texts: Iterable[str], kind: type[int] | type[Path] | type[str]) -> dict[str, Any]:
    """The values that ``SITE=VALUE`` gives sites (or columns), by their names; raises StudyError."""
    from ...common.errors import StudyError

    values: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value) or name in values or (kind is int and not re.fullmatch("[0-9]{1,10}", value)):
            raise StudyError(
                f"{flag} {text} is not {_NAMED[kind]}, once for each {_NAMED[kind].split('=')[0].lower()}",
                why="what is said of one holds for no other",
                fix=f"write for example {flag} {_EXAMPLES[kind]}",
            )
        values[name] = kind(value)
    return values
