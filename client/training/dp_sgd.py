"""DP-SGD on one site: unit gradients -> clip -> integers -> sum -> noise."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ModelError
from ...common.model.adapter import Vector
from ...common.model.example import Example
from ...common.model.optimizers import Optimizer
from ...common.privacy.mechanism import Lattice, Mechanism
from .grad_samples import GradSampler

Unit = Iterable[Example]
# Draws the units of one step, each with its records. At a site: ``cohort.Cohort.draw``.
DrawUnits = Callable[[], Iterable[Unit]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Record:
    """One record of an open unit; ``example`` is None where it could not be read."""

    unit: int
    example: Example | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DpSgd:
    """Releases noised sums of clipped unit gradients, at whatever adapter the sampler's model holds.

    *Formal guarantee.* Adding or removing one unit changes the integer sum by at most ``lattice.sensitivity`` in the
    Euclidean norm, whatever its records and whatever the others do (Abadi et al. 2016, algorithm 1, on integers;
    common/privacy/MECHANISM.md): a unit's gradient is a function of that unit alone, is clipped and checked alone, and
    where a unit fails, from the reading of its records to its integers, only it counts as zero. What leaves is that
    sum under ``mechanism``'s noise, computed the same way for every draw, the empty one included. What fails of a unit
    is not logged: lines with times would count such units, and tell when they were drawn.

    Not covered: a failure of the machine itself (no memory for the sum, a source of units that breaks off) leaves pure
    noise. Were a record able to bring one about, its presence would move the sum by more than ``lattice.sensitivity``.
    """

    sampler: GradSampler
    lattice: Lattice
    mechanism: Mechanism

    def __post_init__(self) -> None:
        """Raises ModelError when lattice and adapter differ in dimension: every unit would then count as zero."""
        dimension = self.sampler.model.layout.dimension
        if self.lattice.dimension != dimension:
            raise ModelError(
                f"the adapter has {dimension} numbers, the study's {self.lattice.dimension}",
                why="it belongs to another model, rank or choice of target modules",
                fix="use the model, rank and target modules that the study names",
            )

    def release(self, draw: DrawUnits) -> NDArray[np.int64]:
        """One fresh draw's noised sum, int64 [d], in lattice units.

        A draw that cannot be read to its end gives pure noise. Nothing that happens to data raises.
        """
        total = self._sum_or_zero(draw)
        self.mechanism.add_noise(total)
        return total

    def train(
        self, draw: DrawUnits, *, adapter: Vector, optimizer: Optimizer, steps: int, denominator: float
    ) -> NDArray[np.float64]:
        """``steps`` local steps from ``adapter``, each a release of its own draw; the adapter's change, float64 [d].

        ``denominator`` is public (sampling probability × nominal units), never a count of what was drawn. Everything
        after the noise is post-processing.
        """
        start = adapter.astype(np.float64)
        parameters = start
        for _ in range(steps):
            self.sampler.model.set_adapter(parameters.astype(np.float32))
            gradient = self.lattice.decode(self.release(draw)) / denominator
            parameters = optimizer.step(parameters, gradient)
        return parameters - start

    def sum_units(self, units: Iterable[Unit]) -> NDArray[np.int64]:
        """The units' encoded gradients, summed without noise, int64 [d]: not to be released.

        A unit's gradient is the mean over its records of the gradient of each record's own loss. Units are read one
        after another, so that memory does not grow with their number.
        """
        total = np.zeros(self.lattice.dimension, dtype=np.int64)
        with np.errstate(all="ignore"):  # a caller's setting could turn one record's infinity into an exception
            for unit_gradient in self.unit_gradients(units):
                total += self._encoded(unit_gradient)
        return total

    def _encoded(self, unit_gradient: NDArray[np.float64]) -> NDArray[np.int64]:
        """The unit's integers, int64 [d]; zeros where anything about its gradient fails."""
        try:
            return self.lattice.encode(self.lattice.clip(unit_gradient))
        except Exception:
            return np.zeros(self.lattice.dimension, dtype=np.int64)

    def _sum_or_zero(self, draw: DrawUnits) -> NDArray[np.int64]:
        try:
            return self.sum_units(draw())
        except Exception as error:
            # Not the part that was read: what a unit later in the order does may not change what earlier ones add.
            _log.error("the data cannot be read (%s): this step is pure noise", type(error).__name__)
            return np.zeros(self.lattice.dimension, dtype=np.int64)

    def unit_gradients(self, units: Iterable[Unit]) -> Iterator[NDArray[np.float64]]:
        """Each unit's gradient before clipping, float64 [d], in turn: not to be released.

        One that failed is not finite somewhere.
        """
        unit, records = 0, 0
        gradient = np.zeros(self.lattice.dimension)
        for record, record_gradient in self._record_gradients(_records(units)):
            if record.unit != unit:
                if records:
                    yield gradient / records
                unit, records = record.unit, 0
                gradient = np.zeros(self.lattice.dimension)
            gradient += record_gradient
            records += 1
        if records:
            yield gradient / records

    def _record_gradients(self, records: Iterator[_Record]) -> Iterator[tuple[_Record, NDArray[np.floating]]]:
        """Each record with its gradient [d], in order, computed in physical batches."""
        while batch := list(islice(records, self.sampler.batch_size)):
            examples = [record.example for record in batch if record.example is not None]
            gradients = iter(self._isolated_gradients(examples))
            for record in batch:
                yield record, self._failed if record.example is None else next(gradients)

    def _isolated_gradients(self, examples: Sequence[Example]) -> Iterable[NDArray[np.floating]]:
        """The gradients of up to a batch of examples; where the batch fails, of each alone at the same shape."""
        try:
            return self.sampler.gradients(examples).numpy() if examples else []
        except Exception:
            return [self._gradient_alone(example) for example in examples]

    def _gradient_alone(self, example: Example) -> NDArray[np.floating]:
        try:
            gradient: NDArray[np.floating] = self.sampler.gradients([example])[0].numpy()
        except Exception:
            return self._failed
        return gradient

    @property
    def _failed(self) -> NDArray[np.float64]:
        # The lattice turns what is not finite into zeros; the unit's other records cannot bring it back.
        return np.full(self.lattice.dimension, np.nan)


def _records(units: Iterable[Unit]) -> Iterator[_Record]:
    """The records of all units in turn. A unit whose records cannot be read counts as one failed record."""
    for index, unit in enumerate(units):
        try:
            examples: list[Example | None] = list(unit)
        except Exception:
            examples = [None]
        for example in examples:
            yield _Record(index, example)
