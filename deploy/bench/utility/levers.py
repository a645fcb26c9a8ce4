"""What is run: each way of training with the settings that were given, and beside them with each lever's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ....common.errors import StudyError
from ....common.schema import read_toml
from ....common.study.study import Study
from ...builtin.spares import with_setting
from ...simulation.settings import Simulation
from .row import Subject
from .ways import COMPARED, SECTIONS, Run


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A ``run`` with what the ``tables`` of a study's file say of training, and what a ``lever`` changes of it.

    ``setting`` has the fields that it changes by their dotted names.
    """

    run: Run
    tables: Mapping[str, Any]
    lever: str | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """In words."""
        return str(self.run) if self.lever is None else f"{self.run}, {self.lever}"

    @cached_property
    def subject(self) -> Subject:
        """Which row it makes. Raises StudyError."""
        return Subject.of(self.run, self.read()[0])

    def read(self) -> tuple[Study, Simulation]:
        """The study of the run's case, and where records are. Raises StudyError."""
        study, simulation = self.run.case.read(self.tables)
        return (study if self.lever is None else with_setting(study, self.setting)), simulation


@dataclass(frozen=True, kw_only=True)
class Levers:
    """By name, tables of a study's file of which each is tried in place of what the ``tables`` say.

    Of the built-in model, in place of what is tuned, too: a lever changes what it names, and no default beside it. Only
    the noise of attempts beyond the rounds, where no stages are stated, is derived again (``with_setting``): it begins
    behind the lever's own rounds.
    """

    tables: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @classmethod
    def read(cls, path: Path | None, tables: Mapping[str, Any]) -> Self:
        """From TOML: a table for each lever, which has tables of a study's file. Raises StudyError."""
        changes = {} if path is None else read_toml(path)
        for name, change in changes.items():
            _require_effect(name, change)
        return cls(tables=tables, changes=changes)

    def jobs(self, runs: Sequence[Run]) -> list[Job]:
        """Every run without a lever and then with each, before the next seed's."""
        jobs = []
        for run in runs:
            jobs.append(Job(run=run, tables=self.tables))
            for lever, change in self.changes.items():
                setting = {
                    f"{table}.{name}": value for table, fields in change.items() for name, value in fields.items()
                }
                jobs.append(Job(run=run, tables=self.tables, lever=lever, setting=setting))
        return jobs


def _require_effect(name: str, change: Any) -> None:
    """Raises StudyError where a lever is no table of tables, or names what the benchmark takes from nobody's file."""
    if not isinstance(change, Mapping) or not all(isinstance(fields, Mapping) for fields in change.values()):
        problem = "is no table of a study's tables"
    elif unknown := [section for section in change if section not in (*SECTIONS, "privacy")]:
        problem = f"has {', '.join(unknown)}, which is not of training"
    elif compared := [field for field in change.get("privacy", {}) if field in COMPARED]:
        problem = f"has privacy.{', privacy.'.join(compared)}, which the ways differ in"
    else:
        return
    raise StudyError(
        f"the lever {name} {problem}",
        why="what is compared is training under the same promise, at the same sites",
        fix='write, for one, a table [rate-falls] with training = { rate_decay = "linear" }',
    )
