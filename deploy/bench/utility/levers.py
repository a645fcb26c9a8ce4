"""What is run: each way of training with the settings that were given, and beside them with each lever's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ....common.errors import StudyError
from ....common.schema import read_toml
from ....common.study.builtin import with_tuned
from .row import Subject
from .ways import COMPARED, SECTIONS, Run


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A ``run`` with what the ``tables`` of a study's file say of training; ``lever`` names what they change."""

    run: Run
    tables: Mapping[str, Any]
    lever: str | None = None

    def __str__(self) -> str:
        """In words."""
        return str(self.run) if self.lever is None else f"{self.run}, {self.lever}"

    @cached_property
    def subject(self) -> Subject:
        """Which row it makes. Raises StudyError."""
        return Subject.of(self.run, self.run.case.read(self.tables)[0])


@dataclass(frozen=True, kw_only=True)
class Levers:
    """By name, tables of a study's file of which each is tried in place of what the ``tables`` say.

    Of the built-in model, in place of what is tuned, too: a lever changes what it names, and no default beside it.
    """

    tables: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @classmethod
    def read(cls, path: Path | None, tables: Mapping[str, Any]) -> Self:
        """From TOML: a table for each lever, which has tables of a study's file. Raises StudyError."""
        changes = {} if path is None else read_toml(path)
        for name, change in changes.items():
            _require_effect(name, change)
        return cls(tables=with_tuned(tables), changes=changes)

    def jobs(self, runs: Sequence[Run]) -> list[Job]:
        """Every run without a lever and then with each, before the next seed's."""
        jobs = []
        for run in runs:
            jobs.append(Job(run=run, tables=self.tables))
            jobs += [Job(run=run, tables=self._with(change), lever=name) for name, change in self.changes.items()]
        return jobs

    def _with(self, change: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        changed = {}
        for section, fields in change.items():
            given = self.tables.get(section)
            changed[section] = {**given, **fields} if isinstance(given, Mapping) else fields
        return {**self.tables, **changed}


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
