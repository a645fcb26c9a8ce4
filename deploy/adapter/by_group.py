"""Whom an adapter serves worse: its quality by groups of people, beside its base model's and another adapter's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...common.data.groups import groups_of, read_held_out
from ...common.data.tokenisation import EvaluationSet, Tokenisation
from ...common.errors import StudyError
from ...common.model.perplexity import RecordLosses
from ...server.report.groups import InGroup, in_groups
from .finished import FinishedAdapter


@dataclass(frozen=True, kw_only=True)
class ByGroup:
    """Each group with the adapter, beside the base model and, if one was given, beside another adapter.

    ``before`` of a group is what it is beside, and ``after`` always the adapter.
    """

    beside_base: tuple[InGroup, ...]
    beside_other: tuple[InGroup, ...]


def by_group(adapter: FinishedAdapter, base: Path, records: Path, *, other: FinishedAdapter | None) -> ByGroup:
    """Measure on a file of records, which may say whom each is about (``TRAIT_COLUMNS``); nothing is kept.

    Raises StudyError where no record says so, or the other adapter is of another base model; DataError and ModelError.
    """
    held_out = read_held_out(records)
    if not groups_of(held_out):
        raise StudyError(
            f"no record of {records.name} says whom it is about",
            why="quality is told by group",
            fix="give records that have one or more of the columns age, sex, race, language, diagnosis",
        )
    if other is not None and (other.published, other.precision) != (adapter.published, adapter.precision):
        raise StudyError(
            f"the other adapter is of {other.published} in {other.precision}, and not of {adapter.published} in "
            f"{adapter.precision}",
            why="what they differ by would be the base models' doing",
            fix="name an adapter of the same base model with --against",
        )
    model = adapter.on(base)
    tokenisation = Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size)
    evaluation = tokenisation.evaluation_set(held_out, positions=model.positions)
    examples, vector = evaluation.examples, model.get_adapter()
    losses = model.record_losses(examples, vector)
    with model.module.disable_adapter():
        without = model.record_losses(examples, vector)
    if other is None:
        return ByGroup(beside_base=_compared(evaluation, without, losses), beside_other=())
    del model
    beside = other.on(base)
    others = beside.record_losses(examples, beside.get_adapter())
    return ByGroup(
        beside_base=_compared(evaluation, without, losses), beside_other=_compared(evaluation, others, losses)
    )


def _compared(evaluation: EvaluationSet, before: RecordLosses, after: RecordLosses) -> tuple[InGroup, ...]:
    evaluated: NDArray[np.float64] = np.vstack([before.whole, after.whole[1:]])
    return in_groups(evaluated, patients=evaluation.patients, groups=evaluation.groups)
