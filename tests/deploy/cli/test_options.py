"""One study, one place: a field that a section declares is an option, and stands in the study's files."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
import typer
from pydantic import Field
from rich.text import Text

from grandrounds.common.schema import Help, Option, Section, help_of
from grandrounds.common.study.builtin import TUNED
from grandrounds.common.study.study import DataSection, Study
from grandrounds.deploy.cli.main import app, main
from grandrounds.deploy.cli.plan import PlanCommand
from grandrounds.deploy.simulation.settings import Simulation
from grandrounds.deploy.simulation.study_toml import full_example

COMMANDS = ("simulate", "plan")
PROPOSED = set(PlanCommand.proposed)
Run = Callable[[list[str]], tuple[int, str, str]]


class WiderData(DataSection):
    """A section to which somebody adds fields, and nothing anywhere else."""

    notes_per_visit: Annotated[int, Option("Notes of a visit"), Field(ge=1, le=9)] = 3
    shortest_stay_days: Annotated[float | None, Option("Days of a stay", unset="any"), Field(gt=0)] = None
    language: Annotated[Literal["de", "en"], Option("Language of the notes", panel="Training")] = "en"
    wards: Annotated[tuple[str, ...], Option("Wards", metavar="NAME,NAME"), Field(strict=False)] = ("a", "b")
    beds: Annotated[dict[str, Annotated[int, Field(ge=1)]], Option("Beds", example="{ a = 1 }")] = Field(
        default_factory=dict
    )
    drafts: Annotated[bool, Option("Drafts are read, too")] = False
    final: Annotated[bool, Option("Only final notes", name="not-final")] = True
    margin: Annotated[float, Help("No option")] = 0.25


class WiderStudy(Study):
    """A study with that section."""

    data: WiderData = WiderData()


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module has the wider study instead."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("grandrounds.") and vars(module).get("Study") is Study:
            monkeypatch.setattr(module, "Study", WiderStudy)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["grandrounds", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


def options(command: str) -> dict[str, click.Option]:
    """The options of a command by what is written on the command line; each is there once."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    found = [
        (name, option)
        for option in group.commands[command].get_params(click.Context(group))
        if isinstance(option, click.Option)
        for name in option.opts
    ]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


SECTIONS: dict[str, type[Section]] = {"simulation": Simulation, **Study.sections()}


def test_every_argument_and_option_of_every_command_says_what_it_is_to_its_last_word() -> None:
    commands, silent, cut = {"grandrounds": typer.main.get_command(app)}, [], []
    while commands:
        name, command = commands.popitem()
        said = {
            f"{name} {each.name}": getattr(each, "help", None) or ""
            for each in command.get_params(click.Context(command))
        }
        silent += [each for each, text in said.items() if not text]
        cut += [each for each, text in said.items() if "\\[" not in text and Text.from_markup(text).plain != text]
        commands |= {f"{name} {one}": each for one, each in getattr(command, "commands", {}).items()}
    assert silent == []
    assert cut == []  # "[data]" would be markup, and not be shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_declared_as_an_option_is_one_of_both_commands_with_its_default(command: str) -> None:
    offered, declared = options(command), 0
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            option = help_of(field)
            if isinstance(option, Option) and option.only in ("", command):
                shown = offered[f"--{option.name or name.replace('_', '-')}"].help or ""
                assert shown.startswith(option.text)
                if type(field.default) in (int, float) and name not in PROPOSED:
                    tuned = TUNED.get(section, {}).get(name)
                    of_builtin = "" if tuned is None else f"{tuned:g} as the built-in model is tuned, else "
                    assert f"(default {of_builtin}{field.default:g})" in shown
                assert not {"None", "PydanticUndefined"} & set(re.findall(r"\w+", shown))
                declared += 1
    assert declared >= 17


def test_help_of_every_field_is_there() -> None:
    for section in SECTIONS.values():
        assert all(help_of(field).text for field in section.model_fields.values())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("wider")
def test_a_field_that_a_section_alone_declares_is_an_option(command: str) -> None:
    offered = options(command)
    assert offered["--notes-per-visit"].help == "Notes of a visit (default 3)."
    assert offered["--shortest-stay-days"].help == "Days of a stay (default any)."
    assert offered["--language"].help == "Language of the notes (default en)."
    assert offered["--wards"].help == "Wards (default a,b)."
    assert [offered[name].help for name in ("--beds", "--drafts")] == ["Beds.", "Drafts are read, too."]
    panels = {name: getattr(offered[f"--{name}"], "rich_help_panel", None) for name in ("wards", "language", "rank")}
    assert panels == {"wards": "Data and model", "language": "Training", "rank": "Data and model"}
    assert "--margin" not in offered


@pytest.mark.usefixtures("wider")
def test_what_is_given_for_it_is_the_study_s_and_wins_over_the_file(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "study.toml"
    config.write_text("[data]\nnotes_per_visit = 5\nmargin = 0.5\nlanguage = 'de'\n", encoding="utf-8")
    given = ["--notes-per-visit=7", "--shortest-stay-days=0.5", "--wards=c, d", "--wards=e", "--beds=c=4", "--beds=d=2"]
    code, out, err = run(
        ["plan", "--no-benchmark", "--json", f"--config={config}", *given, "--drafts", "--not-final"],
    )
    assert code == 0, err
    expected = WiderData(
        evaluation="synthetic",
        notes_per_visit=7,
        shortest_stay_days=0.5,
        language="de",
        wards=("c", "d", "e"),
        beds={"c": 4, "d": 2},
        drafts=True,
        final=False,
        margin=0.5,
    )
    assert json.loads(out)["study"]["data"] == expected.model_dump(mode="json")


@pytest.mark.usefixtures("wider")
@pytest.mark.parametrize("command", [["simulate"], ["plan", "--no-benchmark"]])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--notes-per-visit=10", "data.notes_per_visit = 10: needs 9 or less"),
        ("--notes-per-visit=0", "data.notes_per_visit = 0: "),
        ("--shortest-stay-days=0", "data.shortest_stay_days = 0.0: "),
        ("--beds=c=0", "data.beds.c = 0: "),
        ("--beds=c", "--beds c is not SITE=N"),
    ],
)
def test_its_range_is_the_declaration_s(command: list[str], option: str, named: str, run: Run) -> None:
    code, out, err = run([*command, option])
    assert (code, out) == (1, "")
    assert named in err
    assert "Why it matters: " in err
    assert "What to do: " in err


@pytest.mark.usefixtures("wider")
def test_it_stands_in_the_full_example_with_its_default_and_what_it_does() -> None:
    lines = full_example().splitlines()
    for line in (
        "notes_per_visit = 3               # Notes of a visit",
        "# shortest_stay_days =            # Days of a stay; default any",
        'language = "en"                   # Language of the notes (de, en)',
        'wards = ["a", "b"]                # Wards',
        "# beds = { a = 1 }                # Beds",
        "margin = 0.25                     # No option",
    ):
        assert line in lines
    assert tomllib.loads("\n".join(lines))["data"]["final"] is True
