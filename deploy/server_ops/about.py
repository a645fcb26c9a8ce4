"""What a server's operator says of a study, as it comes into study.toml."""

import json
import re
from pathlib import Path
from typing import Final

from ...common.errors import StudyError
from ...common.study.about import AboutSection
from ...common.study.study import read_study

_TABLE: Final = re.compile(r"^\[about\].*?\n(?=\[|\Z)", re.MULTILINE | re.DOTALL)
_VALUE: Final = r"(\[[^\]]*\])?.*"  # a list may have several lines


def with_about(text: str, about: AboutSection) -> str:
    """The text of a study file with what is said of the study in it, wherever it has its [about]; the rest stays.

    >>> print(with_about('[about]\\n# title = "…"\\n\\n[model]', AboutSection(title="Letters", contact="dpo")), end="")
    [about]
    title = "Letters"
    <BLANKLINE>
    contact = "dpo"
    [model]
    """
    text = text.rstrip("\n") + "\n"
    found = _TABLE.search(text)
    table = found.group() if found else "\n[about]\n"
    for name, value in about.model_dump(mode="json", exclude_defaults=True).items():
        line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        table, stated = re.subn(rf"^(# )?{name} = {_VALUE}$", line.replace("\\", r"\\"), table, flags=re.MULTILINE)
        if not stated:
            table += f"{line}\n"
    return text.replace(found.group(), table, 1) if found else text + table


def check_said(path: Path, about: AboutSection) -> None:
    """Raises StudyError where something is said of the study, and the file that is there says otherwise."""
    given = about.model_dump(exclude_defaults=True)
    said = read_study(path).about if given else about
    other = [name for name, value in given.items() if getattr(said, name) != value]
    if other:
        raise StudyError(
            f"{path} is there, and its [about] says otherwise: {', '.join(other)}",
            why="what stands in it may have been edited, and is not written over",
            fix="edit [about] in that file",
        )
