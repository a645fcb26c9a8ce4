"""A study as the TOML file that people edit and `grandrounds simulate --config` reads."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...common.study.study import Study
from .config import Simulation


def study_toml(study: Study, simulation: Simulation, *, heading: str = "") -> str:
    """The text of a study file: ``heading`` as comments, then every field that has a value.

    Units are stated by ``[[sites]]`` and the study's sampling probability, so ``simulation`` repeats neither.

    >>> print(study_toml(Study.model_validate({"sites": [
    ...     {"name": name, "nominal_units": 20} for name in ("north", "south", "west")
    ... ]}), Simulation(), heading="A study.").split("[data]")[0])
    # A study.
    <BLANKLINE>
    [model]
    name = "builtin"
    adapter = "ffa"
    target_modules = ["v_proj"]
    rank = 4
    alpha = 16.0
    <BLANKLINE>
    <BLANKLINE>
    """
    return "\n".join(_lines(study, simulation, heading))


def _lines(study: Study, simulation: Simulation, heading: str) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in heading.splitlines())
    fields = study.model_dump(mode="json", exclude_none=True)
    sites = fields.pop("sites")
    for name, table in fields.items():
        yield from ("", f"[{name}]", *_pairs(table))
    for site in sites:
        yield from ("", "[[sites]]", *_pairs(site))
    run = simulation.model_dump(mode="json", exclude_none=True, exclude={"units_per_step", "nominal_units"})
    data = run.pop("data")
    yield from ("", "[simulation]", *_pairs(run))
    if data:
        yield from ("", "[simulation.data]", *_pairs(data))
    yield ""


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    # JSON's strings, numbers, booleans and lists of them are TOML's as well; names are bare keys.
    return (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in table.items())
