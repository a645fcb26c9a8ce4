"""Who looks on while a step is computed, and keeps what it comes to for the site alone."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.model.example import NO_LOSS, Example
from ...common.privacy.mechanism import Lattice
from .grad_samples import Shape
from .step_figures import StepFigures

T = TypeVar("T")
Part = Literal["gradients", "sums", "noise"]

_BLOCK: Final = 1 << 20  # numbers whose squares are added at a time


class StepWatch:
    """Looks on while a step is computed, and changes nothing of it."""

    def __init__(self, device: torch.device | None = None) -> None:
        """On a GPU, where ``device`` is given, parts of a step are waited for so that each has its own time."""
        self._device = device if device is not None and device.type == "cuda" else None
        self._started = perf_counter()
        self._seconds = defaultdict[Part, float](float)
        self._units = self._records = self._tokens = 0
        self._norms: list[tuple[Sequence[int], torch.Tensor]] = []
        self._batches = Counter[Shape]()
        self._signal = 0.0
        self._elsewhere: list[StepFigures] = []

    def drawn(self, units: Iterable[T]) -> Iterator[T]:
        """The units of the draw, counted."""
        for unit in units:
            self._units += 1
            yield unit

    def batch(self, shape: Shape, examples: Sequence[Example]) -> None:
        """A physical batch was computed."""
        self._batches[shape] += 1
        self._records += len(examples)
        self._tokens += sum(map(_tokens_of, examples))

    def norms(self, numbers: Sequence[int], norms: torch.Tensor) -> None:
        """The norms of some units' gradients, float64 [units], by their numbers in the draw."""
        self._norms.append((numbers, norms.clone()))  # and not what they may be a view of

    @property
    def unit_norms(self) -> NDArray[np.float64]:
        """The norm of each drawn unit's gradient, float64 [units]; NaN of one that failed."""
        norms = np.full(self._units, np.nan)
        for numbers, found in self._norms:
            norms[list(numbers)] = found.cpu().numpy()
        return norms

    def elsewhere(self, seen: Sequence[StepFigures | None]) -> None:
        """What other ranks saw of the same step, of units of their own."""
        self._elsewhere += [figures for figures in seen if figures is not None]

    def summed(self, total: NDArray[np.signedinteger]) -> None:
        """The sum of the units' integers [d], before its noise."""
        blocks = (total[start : start + _BLOCK].astype(np.float64) for start in range(0, len(total), _BLOCK))
        self._signal = math.sqrt(sum(float(block @ block) for block in blocks))

    @contextmanager
    def timing(self, part: Part) -> Iterator[None]:
        """What is done inside is a part of the step."""
        started = perf_counter()
        yield
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        self._seconds[part] += perf_counter() - started

    def timed(self, part: Part, items: Iterable[T]) -> Iterator[T]:
        """The items, whose making is a part of the step."""
        left = iter(items)
        while True:
            with self.timing(part):
                found = next(left, None)
            if found is None:
                return
            yield found
            del found  # while the next one is made

    def figures(self, lattice: Lattice, *, noise_stddev: float) -> StepFigures:
        """What was seen of a step, now that it is over."""
        own = {f"{shape.batch} x {shape.tokens}": self._batches[shape] for shape in sorted(self._batches)}
        others = self._elsewhere
        return StepFigures(
            norms=np.concatenate([self.unit_norms, *(other.norms for other in others)]),
            clipping_norm=lattice.clipping_norm,
            clipping=lattice.clipping,
            signal=self._signal / lattice.scale,
            noise=noise_stddev * math.sqrt(lattice.dimension) / lattice.scale,
            records=self._records + sum(other.records for other in others),
            tokens=self._tokens + sum(other.tokens for other in others),
            computed=sum(number * shape.batch * shape.tokens for shape, number in self._batches.items())
            + sum(other.computed for other in others),
            batches=dict(sum((Counter(other.batches) for other in others), Counter(own))),
            seconds=perf_counter() - self._started,
            gradients_s=self._seconds["gradients"],
            sums_s=self._seconds["sums"],
            noise_s=self._seconds["noise"],
        )


def _tokens_of(example: Example) -> int:
    """How many tokens an example has without its padding, which nothing tells from zeros at a record's end."""
    return int(np.flatnonzero((example.token_ids != 0) | (example.labels != NO_LOSS)).max(initial=-1)) + 1
