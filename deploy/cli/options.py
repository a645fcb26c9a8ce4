"""Options that ``simulate`` and ``plan`` share: what a study may be given on the command line."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .epsilon import TrustOption

# Panels of the help.
MODEL = "Data and model"
PRIVACY = "Privacy"
TRAINING = "Training"


class UnitOption(StrEnum):
    """What one person's presence means."""

    PATIENT = "patient"
    RECORD = "record"


ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file; options given beside it win.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Folder or hub name of a causal language model.", rich_help_panel=MODEL)
]
TargetModulesOption = Annotated[
    str | None,
    typer.Option(help="Layers to adapt, by name, comma-separated (default v_proj).", rich_help_panel=MODEL),
]
RankOption = Annotated[int | None, typer.Option(help="Rank of the adapter (default 4).", rich_help_panel=MODEL)]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Tokens read of a record (default 384).", rich_help_panel=MODEL)
]
RecordsPerUnitOption = Annotated[
    int | None, typer.Option(help="Records of a patient read in a step (default 1).", rich_help_panel=MODEL)
]
TargetEpsilonOption = Annotated[
    float | None, typer.Option(help="ε of the whole study (default 4).", rich_help_panel=PRIVACY)
]
DeltaOption = Annotated[
    float | None, typer.Option(help="δ (default: a tenth of one over all units).", rich_help_panel=PRIVACY)
]
StudyTrustOption = Annotated[
    TrustOption | None,
    typer.Option(help="Sites share the noise (default), or each adds all.", rich_help_panel=PRIVACY),
]
PrivacyUnitOption = Annotated[
    UnitOption | None, typer.Option(help="Who is protected (default patient).", rich_help_panel=PRIVACY)
]
SitesPerPatientOption = Annotated[
    int | None, typer.Option(help="Most sites that hold one patient (default 1).", rich_help_panel=PRIVACY)
]
CorruptSitesOption = Annotated[
    int | None,
    typer.Option(help="Corrupt sites tolerated beside the server (default 1).", rich_help_panel=PRIVACY),
]
ThresholdOption = Annotated[
    int | None, typer.Option(help="Sites that must answer (default two thirds).", rich_help_panel=PRIVACY)
]
PhysicalBatchOption = Annotated[
    int | None, typer.Option(help="Records computed at a time (default 2).", rich_help_panel=TRAINING)
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where the model computes: cpu (default), cuda, cuda:1.", rich_help_panel=TRAINING
    ),
]
MaxAttemptsOption = Annotated[
    int | None,
    typer.Option(help="Attempts that the claim covers (default 1.2 × rounds).", rich_help_panel=TRAINING),
]
LocalStepsOption = Annotated[
    int | None, typer.Option(help="Steps a site takes in a round (local trust).", rich_help_panel=TRAINING)
]


def listed(names: str | None) -> tuple[str, ...]:
    """The names of a comma-separated option."""
    return tuple(name.strip() for name in names.split(",")) if names else ()


def named_numbers(texts: list[str]) -> dict[str, int]:
    """``SITE=N`` options as a mapping; raises StudyError."""
    from ...common.errors import StudyError

    numbers: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not (name and re.fullmatch("[0-9]{1,10}", number)) or name in numbers:
            raise StudyError(
                f"--nominal-units {text} is not SITE=N, a whole number and a site of its own",
                why="every site signs its units, and the noise follows from them",
                fix="write for example --nominal-units north=200",
            )
        numbers[name] = int(number)
    return numbers
