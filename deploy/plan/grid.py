"""The settings that a sweep tries, and the records that it may try them on."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from ...common.errors import StudyError
from ...common.schema import Section, as_toml, read_toml, validated
from ...common.study.study import Sensitivity, Study

_MOST_RUNS: Final = 10_000
_WHY: Final = "a sweep compares ways of training under one promise, on one model and one held-out set"
# Of [privacy], what promises nothing; of the other tables, all but what a sweep cannot see the effect of.
_OF_PRIVACY: Final = frozenset(("sampling_probability", "clipping_norm", "clipping", "noise_stages"))
_UNSEEN: Final = {
    "model": frozenset(("name", "first_text", "license")),
    "data": frozenset(("evaluation", "public", "public_units")),
    "training": frozenset(
        (
            "max_attempts",
            "evaluations",
            "local_steps",
            "local_optimizer",
            "local_learning_rate",
            "physical_batch",
            "deadline_s",
            "answer_after_s",
        )
    ),
}

_Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False)]
_Table = dict[str, _Values]


def require_unprotected(public_text: Path | None, kind: Sensitivity | None) -> None:
    """Raises StudyError where it is said that the people in a file have to be protected, whatever it is used for."""
    if public_text is not None and kind not in (None, "public", "synthetic"):
        raise StudyError(
            f"{public_text.name} is {kind}",
            why="what is chosen on records of care, a clipping norm or another setting, tells of them: no study's ε "
            "covers that",
            fix="choose on records of nobody who has to be protected, and say so: --public-text-kind public (or "
            "synthetic); what a choice on others costs: grandrounds epsilon --selected-from",
        )


def require_public(public_text: Path | None, kind: Sensitivity | None) -> Path:
    """The file to sweep on. Raises StudyError where its people would have to be protected, or nothing is said."""
    require_unprotected(public_text, kind)
    if public_text is None:
        raise StudyError(
            "--sweep has no records to train on",
            why="what is chosen on the built-in patients cannot be judged on them, and sites' records cost ε",
            fix="add --public-text FILE --public-text-kind public (or synthetic), written as the sites' records are",
        )
    if kind is None:
        raise StudyError(
            f"what {public_text.name} is was not said",
            why="each setting that is tried on records of care reads them again, and no study's ε covers that",
            fix="say it: --public-text-kind public (or synthetic)",
        )
    return public_text


class Grid(Section):
    """What is tried: of each field of a study, by its table, a list of values; and how often each setting is trained.

    >>> grid = Grid(privacy={"clipping": ["norm", "auto"]}, training={"learning_rate": [0.1, 0.2]}, repeats=2)
    >>> [setting["training.learning_rate"] for setting in grid.settings], grid.runs
    ([0.1, 0.2, 0.1, 0.2], 8)
    """

    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    model: _Table = Field(default_factory=dict)
    data: _Table = Field(default_factory=dict)
    privacy: _Table = Field(default_factory=dict)
    training: _Table = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The grid of a TOML file. Raises StudyError, also for what a sweep cannot compare."""
        grid = validated(cls, read_toml(path, why=_WHY), source=path, why=_WHY)
        for name in grid.fields:
            table, field = name.split(".")
            allowed = (
                _OF_PRIVACY if table == "privacy" else Study.sections()[table].model_fields.keys() - _UNSEEN[table]
            )
            if field not in allowed:
                raise StudyError(
                    f"{path}: {name} cannot be swept",
                    why=_WHY,
                    fix=f"of [{table}] these can: {', '.join(sorted(allowed))}",
                )
        if not grid.fields or grid.runs > _MOST_RUNS:
            raise StudyError(
                f"{path}: {grid.runs if grid.fields else 'no'} runs",
                why="each takes the time of a whole study on the public records",
                fix=f"give fields lists of values, as [training] learning_rate = [0.1, 0.2]; at most {_MOST_RUNS} runs",
            )
        return grid

    @cached_property
    def fields(self) -> dict[str, Sequence[Any]]:
        """The values of each field, by its dotted name."""
        return {
            f"{table}.{field}": values
            for table in ("model", "data", "privacy", "training")
            for field, values in getattr(self, table).items()
        }

    @property
    def settings(self) -> Iterator[dict[str, Any]]:
        """Every combination."""
        return (dict(zip(self.fields, values, strict=True)) for values in itertools.product(*self.fields.values()))

    @property
    def runs(self) -> int:
        """How often a study is trained."""
        return self.repeats * math.prod(map(len, self.fields.values()))


def shown(setting: Mapping[str, Any]) -> str:
    """A setting in one line.

    >>> shown({"training.learning_rate": 0.1, "model.target_modules": ("q_proj",)})
    'training.learning_rate = 0.1, model.target_modules = ["q_proj"]'
    """
    return ", ".join(f"{name} = {as_toml(value)}" for name, value in setting.items())
