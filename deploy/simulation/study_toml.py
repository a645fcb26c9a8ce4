"""A study as the TOML file that people edit and `grandrounds simulate --config` reads.

``python -m grandrounds.deploy.simulation.study_toml`` prints the full example, deploy/templates/study.full.toml.
"""

from collections.abc import Iterator
from typing import Final, Literal, get_args, get_origin

from ...common.schema import Section, as_toml, help_of, kind_of
from ...common.study.completion import complete_study, rate_follows_noise
from ...common.study.study import DEFAULT_TARGET_EPSILON, Study
from .config import read_simulation
from .settings import DEFAULT_DROPOUT, Simulation

_COMMENTS_FROM: Final = 34
_FULL: Final = """\
Every parameter of a study, as the built-in study has it, and what it does. Unknown names are refused.
Every message that a site signs carries the hash of all of this but [simulation]; the server can change none of it.
[simulation] is for `grandrounds simulate` alone. This file is made by `make templates`."""


def study_toml(study: Study, simulation: Simulation, *, heading: str = "") -> str:
    """The text of a study file: ``heading`` as comments, then every field and what it does.

    What has no value is commented out. Units are stated by ``[[sites]]`` and the study's sampling probability, so
    ``simulation`` states neither.

    >>> print(study_toml(Study.model_validate({"sites": [
    ...     {"name": name, "nominal_units": 20} for name in ("north", "south", "west")
    ... ]}), Simulation(), heading="A study.").split("[privacy]")[0])
    # A study.
    ...
    [model]
    ...
    rank = 1                          # Rank of the adapter
    alpha = 64.0                      # The adapter's output is scaled by alpha / rank
    ...
    layers = [15, 27]                 # The first and the last block that get one, from 0; ...
    # license = "apache-2.0"          # The base model's; if left out, what its folder's README.md states
    <BLANKLINE>
    [data]
    max_tokens = 384                  # Tokens of a window; a longer record is several, each read by itself
    ...
    """
    return "\n".join(_lines(study, simulation, heading))


def full_example() -> str:
    """The built-in study with every default stated, its noise and its rate left to follow from ε."""
    study, simulation = read_simulation(
        {"privacy": {"target_epsilon": DEFAULT_TARGET_EPSILON}, "simulation": {"dropouts": [DEFAULT_DROPOUT]}}
    )
    return study_toml(left_open(complete_study(study), study), simulation, heading=_FULL)


def left_open(complete: Study, stated: Study) -> Study:
    """The complete study without what follows from ε, where it was not stated: whoever edits ε would keep it."""
    privacy, training = complete.privacy, complete.training
    if stated.privacy.noise_multiplier is None:
        privacy = privacy.model_copy(update={"noise_multiplier": None})
    if stated.training.learning_rate is None and rate_follows_noise(stated):
        training = training.model_copy(update={"learning_rate": None})
    return complete.model_copy(update={"privacy": privacy, "training": training})


def _lines(study: Study, simulation: Simulation, heading: str) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in heading.splitlines())
    for name in study.sections():
        yield from ("", f"[{name}]", *_commented(getattr(study, name)))
    first, *others = study.sites
    yield from ("", "[[sites]]", *_commented(first))
    for site in others:  # what a field does was said
        yield from ("", "[[sites]]", *(line for line, _ in _settings(site) if not line.startswith("#")))
    simulation = simulation.model_copy(update={"units_per_step": None, "nominal_units": {}})
    yield from ("", "[simulation]", *_commented(simulation), "")


def _commented(section: Section) -> Iterator[str]:
    return (f"{line:{_COMMENTS_FROM - 1}} # {said}" for line, said in _settings(section))


def _settings(section: Section) -> Iterator[tuple[str, str]]:
    """Each field as a line, which is a comment where it has no value, and what is said of it."""
    for name, value in section.model_dump(mode="json", by_alias=True).items():
        field = type(section).model_fields[name]
        said, kind = help_of(field), kind_of(field.annotation)
        choices = f" ({', '.join(map(str, get_args(kind)))})" if get_origin(kind) is Literal else ""
        unset = said.unset and f"; default {said.unset}"
        line = f"# {name} = {said.example}".rstrip() if value in (None, {}) else f"{name} = {as_toml(value)}"
        yield line, f"{said.text}{choices}{unset}"


if __name__ == "__main__":
    print(full_example(), end="")
