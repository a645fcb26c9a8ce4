"""DP-SGD on one site: unit gradients -> clip -> integers -> sum -> noise."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import ModelError
from ...common.model.adapter import Vector
from ...common.model.example import Example
from ...common.model.optimizers import Optimizer
from ...common.privacy.mechanism import Lattice, Mechanism
from .grad_samples import GradSampler, Shape
from .step_figures import Observer
from .step_watch import StepWatch
from .unit_sum import UnitSum

Unit = Iterable[Example]
# Draws the units of one step, each with its records. At a site: ``cohort.Cohort.draw``.
DrawUnits = Callable[[], Iterable[Unit]]
# Units' gradients before clipping, float32 [units, d], and their numbers in the draw.
_Gradients = tuple[Sequence[int], torch.Tensor]

# Of units that are worked on together, so that batches are full: records, and bytes of gradients of units with several.
_MOST_RECORDS: Final = 1024
_MOST_BYTES: Final = 1 << 30

_log = logging.getLogger(__name__)


def most_flights(units: int, *, records: int, dimension: int) -> int:
    """Into how many parts a draw falls at most, of units with up to ``records`` each; parts share no batch.

    What a part holds at least is what closes it: ``_MOST_RECORDS``, or ``_MOST_BYTES`` of units with several records.
    """
    closed_by_bytes = units * 4 * dimension / _MOST_BYTES if records > 1 else 0
    return 1 + math.floor(units * records / _MOST_RECORDS + closed_by_bytes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Unit:
    """A unit of a draw, by its number there, with its records."""

    number: int
    examples: Sequence[Example]


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """What a rank sums of a step: its ``units``, at an ``adapter``, as integers of a ``lattice``.

    Where the step ``is_watched``, it says what it saw.
    """

    adapter: Vector
    lattice: Lattice
    integers: np.dtype[np.integer]
    units: Sequence[Sequence[Example]]
    is_watched: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class DpSgd:
    """Releases noised sums of clipped unit gradients, at whatever adapter the sampler's model holds.

    *Formal guarantee.* Adding or removing one unit changes the integer sum by at most ``lattice.sensitivity`` in the
    Euclidean norm, whatever its records and whatever the others do (``UnitSum``): a unit's gradient is a function of
    that unit alone, its records' gradients added in an order that follows from its records alone; it is clipped and
    checked alone; and where a unit fails, from the reading of its records to its integers, only it counts as zero. What
    leaves is that sum under ``mechanism``'s noise, computed the same way for every draw, the empty one included. What
    fails of a unit is not logged: lines with times would count such units, and tell when they were drawn.

    Not covered: a failure of the machine itself (no memory for the sum, a source of units that breaks off) leaves pure
    noise, and where the sampler has several ranks may end this process (``RankLost``). Were a record able to bring one
    about, its presence would move the sum by more than ``lattice.sensitivity``, or show.

    ``integers`` is the type of what is released: int64, or that of residues (``secagg/encoding``), of which memory
    holds half as many bytes. A sum of residues is the residue of the sum.
    """

    sampler: GradSampler
    lattice: Lattice
    mechanism: Mechanism
    integers: np.dtype[np.integer] = field(default_factory=lambda: np.dtype(np.int64))
    observer: Observer | None = None

    def __post_init__(self) -> None:
        """Raises ModelError when lattice and adapter differ in dimension: every unit would then count as zero."""
        dimension = self.sampler.model.layout.dimension
        if self.lattice.dimension != dimension:
            raise ModelError(
                f"the adapter has {dimension} numbers, the study's {self.lattice.dimension}",
                why="it belongs to another model, rank or choice of target modules",
                fix="use the model, rank and target modules that the study names",
            )

    def release(self, draw: DrawUnits) -> NDArray[Any]:
        """One fresh draw's noised sum, ``integers`` [d], in lattice units.

        A draw that cannot be read to its end gives pure noise. Nothing that happens to data raises. An ``observer`` is
        told what was seen, whose figures no noise protects.
        """
        watch = StepWatch(self.sampler.model.device if self.observer else None)
        with ThreadPoolExecutor(1) as beside:  # noise comes from processors, which may have nothing else to do
            noise = beside.submit(self._noise)
            total = self._sum_or_zero(draw, watch)
            if self.observer is not None:
                watch.summed(total)
            with watch.timing("noise"):
                released = noise.result()
            released += total.view(released.dtype)
        self._tell(watch)
        return released

    def train(
        self, draw: DrawUnits, *, adapter: Vector, optimizer: Optimizer, steps: int, denominator: float
    ) -> NDArray[np.float64]:
        """``steps`` local steps from ``adapter``, each a release of its own draw; the adapter's change, float64 [d].

        ``denominator`` is public (sampling probability × nominal units), never a count of what was drawn. Everything
        after the noise is post-processing.
        """
        parameters: NDArray[np.float64] = adapter.astype(np.float64)
        for _ in range(steps):
            self.sampler.model.set_adapter(parameters.astype(np.float32))
            gradient = self.lattice.decode(self.release(draw))
            gradient /= denominator
            parameters = optimizer.step(parameters, gradient)
        parameters = optimizer.left(parameters)
        parameters -= adapter  # of which float64 holds every number
        return parameters

    def sum_units(self, units: Iterable[Unit], watch: StepWatch | None = None) -> NDArray[np.signedinteger]:
        """The units' encoded gradients, summed without noise, as many bytes as ``integers`` [d]: not to be released.

        A unit's gradient is the mean over its records of the gradient of each record's own loss. Of several ranks, each
        sums a part of the units, and this one, the first, adds up: whichever computes a unit, it is the same integers.
        """
        watch, ranks = watch or StepWatch(), self.sampler.ranks
        if ranks.count == 1:
            return self.sum_share(units, watch)
        own, *others = _dealt([self._readable(unit) for unit in units], ranks.count)
        adapter, is_watched = self.sampler.model.get_adapter(), self.observer is not None
        shares = [
            Share(adapter=adapter, lattice=self.lattice, integers=self.integers, units=one, is_watched=is_watched)
            for one in others
        ]
        try:
            ranks.ask(shares)
            total = self.sum_share(own, watch)
            _, *seen = ranks.add_up(total, None)
        except Exception as error:  # after which the others' sums would be taken for those of the next step
            ranks.fail(type(error).__name__)
        watch.elsewhere(seen)
        return total

    def sum_share(self, units: Iterable[Unit], watch: StepWatch) -> NDArray[np.signedinteger]:
        """As ``sum_units``, of the units that one rank is dealt.

        Some are worked on at a time, so that memory does not grow with their number.
        """
        total = UnitSum(self.lattice, self.sampler.model.device, bits=8 * self.integers.itemsize)
        for numbers, gradients in watch.timed("gradients", self._unit_gradients(watch.drawn(units), watch)):
            with watch.timing("sums"):
                watch.norms(numbers, total.add(gradients))
            del gradients  # while the next ones are computed
        return total.total

    def norms(self, units: Iterable[Unit]) -> NDArray[np.float64]:
        """The norm of each unit's gradient before clipping, float64 [units]: not to be released.

        Not finite where the unit failed.
        """
        watch = StepWatch()
        self.sum_units(units, watch)
        return watch.unit_norms

    def _tell(self, watch: StepWatch) -> None:
        """Tell the observer of a step that is over, whatever becomes of that."""
        if self.observer is None:
            return
        try:
            self.observer(watch.figures(self.lattice, noise_stddev=self.mechanism.noise_stddev))
        except Exception as error:
            _log.warning("nobody is told of this step (%s)", type(error).__name__)

    def _noise(self) -> NDArray[Any]:
        noise: NDArray[Any] = np.zeros(self.lattice.dimension, dtype=self.integers)
        self.mechanism.add_noise(noise)
        return noise

    def _sum_or_zero(self, draw: DrawUnits, watch: StepWatch) -> NDArray[np.signedinteger]:
        try:
            return self.sum_units(draw(), watch)
        except Exception as error:
            # Not the part that was read: what a unit later in the order does may not change what earlier ones add.
            _log.error("the data cannot be read (%s): this step is pure noise", type(error).__name__)
            return np.zeros(self.lattice.dimension, dtype=f"i{self.integers.itemsize}")

    def _unit_gradients(self, units: Iterable[Unit], watch: StepWatch) -> Iterator[_Gradients]:
        """The gradients of all units that do not fail, each once; of one that does, none or numbers not finite."""
        for together in self._flights(units):
            yield from self._gradients_of(together, watch)

    def _flights(self, units: Iterable[Unit]) -> Iterator[list[_Unit]]:
        """The readable units, as many at a time as fill batches and fit into memory."""
        flight: list[_Unit] = []
        records, open_bytes = 0, 0
        for number, unit in enumerate(units):
            examples = self._readable(unit)
            if not examples:
                continue
            flight.append(_Unit(number=number, examples=examples))
            records += len(examples)
            open_bytes += 4 * self.lattice.dimension * (len(examples) > 1)
            if records >= _MOST_RECORDS or open_bytes >= _MOST_BYTES:
                yield flight
                flight, records, open_bytes = [], 0, 0
        yield flight

    def _readable(self, unit: Unit) -> list[Example]:
        """The unit's records; none where one of them cannot be read, or is nothing that the model computes.

        They are judged before a batch is computed: no record makes one fail, and with it cost the time of several.
        """
        try:
            examples = list(unit)
            for example in examples:
                self.sampler.shape_of(example)
                self.sampler.model.check_tokens(example.token_ids, example.labels)
        except Exception:
            return []
        return examples

    def _gradients_of(self, units: Sequence[_Unit], watch: StepWatch) -> Iterator[_Gradients]:
        """As ``_unit_gradients``. A unit's records are added shape by shape, and within one in their own order."""
        by_shape: dict[Shape, list[tuple[_Unit, Example]]] = defaultdict(list)
        for unit in units:
            for example in unit.examples:
                by_shape[self.sampler.shape_of(example)].append((unit, example))
        sums: dict[int, torch.Tensor] = {}
        for shape in sorted(by_shape):
            records = by_shape[shape]
            for start in range(0, len(records), shape.batch):
                batch = records[start : start + shape.batch]
                examples = [example for _, example in batch]
                rows = self._isolated_gradients(examples)
                watch.batch(shape, examples)
                alone = [row for row, (unit, _) in enumerate(batch) if len(unit.examples) == 1]
                for row, (unit, _) in enumerate(batch):
                    if len(unit.examples) > 1:
                        if unit.number in sums:
                            sums[unit.number].add_(rows[row].div_(len(unit.examples)))
                        else:
                            sums[unit.number] = rows[row] / len(unit.examples)
                if alone:
                    numbers = [batch[row][0].number for row in alone]
                    yield numbers, rows if len(alone) == len(rows) else rows[alone]
                del rows  # while the next ones are computed
        for number in list(sums):
            yield [number], sums.pop(number)[None]

    def _isolated_gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """The gradients [examples, d] of up to a batch of examples; where the batch fails, of each alone, in its shape.

        NaN for one that fails alone, too: the unit's other records cannot bring it back.
        """
        try:
            return self.sampler.gradients(examples)
        except Exception:
            return torch.cat([self._gradient_alone(example) for example in examples])

    def _gradient_alone(self, example: Example) -> torch.Tensor:
        try:
            return self.sampler.gradients([example])
        except Exception:
            return torch.full((1, self.lattice.dimension), torch.nan, device=self.sampler.model.device)


def _dealt(units: Iterable[Sequence[Example]], count: int) -> list[list[Sequence[Example]]]:
    """The units in ``count`` shares of about as much work each, of every length as many."""
    by_tokens = sorted(units, key=lambda examples: sum(len(example.token_ids) for example in examples))
    return [by_tokens[number::count] for number in range(count)]
