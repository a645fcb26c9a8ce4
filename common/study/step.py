"""The step from one adapter to the next, which the server takes and every site after it, from the same public sum.

It adds, subtracts, multiplies, divides and takes square roots, each of which IEEE 754 rounds in one way, and has
running products where the textbook has powers: so every machine comes to the same bits, and what came of a step is
compared by hash.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..crypto.identity import sha256
from ..errors import EnvelopeError
from ..model.adapter import Vector, adapter_from, loaded, vector_view
from ..model.optimizers import KnownNoise, OptimizerName
from ..protocol.messages import packed, views
from ..schema import known
from ..secagg.encoding import centred, residue_dtype, residues, sum_of_squares
from ..system.content import Content, Joined, Stored, cut, in_memory
from .manifest import Manifest
from .rates import average_weight, rate_factor
from .training import TrainingSection

# The vectors that an optimiser remembers, float32, in this order; then come its pairs, of float64. Before them stands
# what the study would leave, where this is not the round's adapter.
_VECTORS: Final[dict[OptimizerName, tuple[str, ...]]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("mean", "square"),
    "disk": ("estimate", "ahead"),
}
_PAIRS: Final = ("powers", "noise")
_MOST_BYTES_PER_NUMBER: Final = 20
_BLOCK: Final = 1 << 16  # numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The adapter float32 [d] after a round, and what the optimiser remembers, as bytes: none before the first step.

    Of an adapter in a file ``adapter`` is the bytes. Neither changes.
    """

    adapter: Vector | Stored
    optimizer: Content = b""

    @property
    def vector(self) -> Vector:
        """The adapter, float32 [d], in memory."""
        return loaded(self.adapter)

    @property
    def numbers(self) -> Content:
        """The adapter's bytes, where they lie."""
        return self.adapter if isinstance(self.adapter, Stored) else vector_view(self.adapter)

    @cached_property
    def adapter_sha256(self) -> str:
        """The adapter's hash, as the ledger has it."""
        return sha256(self.numbers)

    @cached_property
    def optimizer_sha256(self) -> str:
        """The hash of what the optimiser remembers, as the ledger has it."""
        return sha256(self.optimizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Missing:
    """What a site is sent of the adapter: what it lacks of the state before the last round, and of that round's sum."""

    before: Trained | None = None
    total: Content = b""

    def packed(self) -> Joined:
        """As it travels, packed but not put together: adapter, optimiser, sum; each empty where the site has it."""
        before = (b"", b"") if self.before is None else (self.before.numbers, self.before.optimizer)
        return packed([*before, self.total])

    @classmethod
    def parse(cls, payload: Content, *, dimension: int) -> Self:
        """What ``packed`` gave, where it lies; raises EnvelopeError."""
        parts = views(payload)
        if len(parts) != 3:
            raise _unfit(f"{len(parts)} parts of the adapter where 3 were due")
        adapter, optimizer, total = parts
        if not adapter:
            return cls(total=total)
        return cls(
            before=Trained(adapter=adapter_from(adapter, dimension=dimension), optimizer=optimizer),
            total=total,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LastStep:
    """The last step of a study: ``after`` came of ``before`` and ``total``; of the first adapter, nothing."""

    after: Trained
    before: Trained | None = None
    total: Content = b""

    @cached_property
    def total_sha256(self) -> str:
        """The hash of the sum, as the ledger has it."""
        return sha256(self.total)

    def missing(self, *, behind: int | None) -> Missing:
        """What a site lacks that is so many rounds ``behind``; None where it holds no adapter."""
        if behind == 0:
            return Missing()
        if self.before is None:
            return Missing(before=self.after)
        return Missing(before=None if behind == 1 else self.before, total=self.total)


@dataclass(frozen=True, kw_only=True, eq=False)
class DueStep:
    """What a step is made of: the state ``before`` it, and the sum ``total`` of ``survivors``, by a ``manifest``.

    ``round``, 1 the first, decides the learning rate and what becomes of the average; the ``attempt`` that it took,
    and who of the survivors had ``shown`` the noise that was taken off, decide how much was left to correct.
    """

    manifest: Manifest
    before: Trained
    total: Content
    survivors: Sequence[str]
    round: int
    attempt: int
    shown: Sequence[str]


# ``step``, or one like it into files.
TakeStep = Callable[[DueStep], Trained]


def step(due: DueStep) -> Trained:
    """What comes of a step, in memory.

    Raises EnvelopeError where ``before`` is no state of the study's optimiser, or ``total`` no sum of the study's.
    """
    adapter, optimizer = BytesIO(), BytesIO()
    _write(due, adapter=adapter, optimizer=optimizer)
    return Trained(adapter=np.frombuffer(adapter.getbuffer(), dtype="<f4"), optimizer=optimizer.getbuffer())


def step_into(due: DueStep, new_file: Callable[[], IO[bytes]]) -> Trained:
    """As ``step``, into two files that are new, so that nothing as long as the adapter is in memory.

    Raises OSError, too.
    """
    adapter, optimizer = new_file(), new_file()
    _write(due, adapter=adapter, optimizer=optimizer)
    for file in (adapter, optimizer):
        file.flush()
    return Trained(adapter=Stored(adapter), optimizer=Stored(optimizer))


def _write(due: DueStep, *, adapter: IO[bytes], optimizer: IO[bytes]) -> None:
    """Into empty files adapter, and what the optimiser remembers: block by block, as each number has its own step."""
    manifest, before, total = due.manifest, due.before, due.total
    training = manifest.study.training
    remembered, after = _remembered(manifest, before.optimizer), _places(manifest)
    schedule = {"rounds": training.rounds, "warmup_rounds": training.warmup_rounds}
    learning_rate = known(training.learning_rate) * rate_factor(training.rate_decay, due.round, **schedule)
    known_noise = _known_noise(due)
    for tensor, (start, end) in enumerate(itertools.pairwise(manifest.tensor_starts)):
        noise = None if known_noise is None else known_noise(start, end)
        for at in range(start, end, _BLOCK):
            block = slice(at, min(at + _BLOCK, end))
            # Of what is not of one number each there is one of a tensor, or a pair of all.
            places = {name: slice(0, 2) for name in _PAIRS}
            if training.noise_correction == "tensor":
                places["square"] = slice(tensor, tensor + 1)
            rule = training.server_optimizer(learning_rate=learning_rate, noise=noise)
            found = {name: place.read(before.optimizer, places.get(name, block)) for name, place in remembered.items()}
            rule.restore(found)
            # An adapter that is not finite is refused by those who get it.
            with np.errstate(over="ignore", invalid="ignore"):
                aggregate = sum_from_bytes(manifest, total, block.start, block.stop)
                gradient = mean_gradient(manifest, aggregate, due.survivors).astype(np.float32)
                was = _NUMBERS.read(before.numbers, block)
                stepped = rule.step(was, gradient, kept=1 - learning_rate * training.weight_decay)
                iterate = rule.left(stepped)
                state = rule.state | {"average": _averaged(training, due.round, found.get("average", was), iterate)}
            adapter.write(vector_view(stepped))
            for name, place in after.items():
                place.write(optimizer, places.get(name, block), state[name])


def left(manifest: Manifest, trained: Trained) -> Vector:
    """The adapter float32 [d] that the study leaves, were it to end here: its average, if it has one."""
    average = _average(manifest, trained)
    return trained.vector if average is None else np.require(_vector(average), requirements="W")


def left_sha256(manifest: Manifest, trained: Trained) -> str:
    """The hash of what is ``left``."""
    return average_sha256(manifest, trained) or trained.adapter_sha256


def average_sha256(manifest: Manifest, trained: Trained) -> str | None:
    """The hash of the average of the rounds' iterates, as the ledger has it; None where there is none."""
    average = _average(manifest, trained)
    return None if average is None else sha256(average)


def _average(manifest: Manifest, trained: Trained) -> Content | None:
    place = _remembered(manifest, trained.optimizer).get("average")
    return None if place is None else cut(trained.optimizer, place.offset, place.offset + 4 * manifest.dimension)


def _vector(numbers: Content) -> Vector:
    return np.frombuffer(in_memory(numbers), dtype="<f4")


def mean_gradient(
    manifest: Manifest, aggregate: NDArray[np.signedinteger], survivors: Sequence[str]
) -> NDArray[np.float64]:
    """The gradient [d] that the optimiser is given, from the aggregate [d] over the survivors.

    Divided by a public denominator, never by a true count. Distributed trust: q × the survivors' nominal units, and
    the public units that each of them adds. Local trust: the survivors' share of all nominal units; the sites' mean
    change, negated, stands for a gradient.
    """
    if manifest.study.privacy.trust == "distributed":
        return manifest.lattice.decode(aggregate) / manifest.step_units(survivors)
    units = sum(manifest.nominal_units(site) for site in survivors)
    return -manifest.fixed_point.decode(aggregate) / (units / manifest.study.total_nominal_units)


def sum_bytes(manifest: Manifest, aggregate: NDArray[np.signedinteger]) -> memoryview:
    """A round's sum as it is kept, hashed and sent: little-endian residues of the study's modulus [d].

    They lie where the ``aggregate`` does, if it is as wide.
    """
    modulus_bits = known(manifest.study.secagg.modulus_bits)
    dtype = residue_dtype(modulus_bits)
    numbers = aggregate.view(dtype) if aggregate.itemsize == dtype.itemsize else residues(aggregate, modulus_bits)
    return numbers.data.cast("B")


def sum_from_bytes(
    manifest: Manifest, total: Content, start: int = 0, stop: int | None = None
) -> NDArray[np.signedinteger]:
    """The centred sum of such bytes, from one number to another; raises EnvelopeError when their number is another."""
    if len(total) != sum_size(manifest):
        raise _unfit(f"a sum of {len(total)} bytes where {sum_size(manifest)} were due")
    dtype = residue_dtype(known(manifest.study.secagg.modulus_bits))
    end = manifest.dimension if stop is None else stop
    return centred(np.frombuffer(total[dtype.itemsize * start : dtype.itemsize * end], dtype=dtype))


def sum_size(manifest: Manifest) -> int:
    """The size of a sum in bytes."""
    return manifest.dimension * residue_dtype(known(manifest.study.secagg.modulus_bits)).itemsize


def largest_missing_bytes(dimension: int) -> int:
    """The size that no ``Missing`` exceeds."""
    return _MOST_BYTES_PER_NUMBER * dimension + 16 * len(_PAIRS) + 64


def _lengths(manifest: Manifest) -> dict[str, int]:
    """How many numbers are remembered under each name, in the order of ``_VECTORS`` and ``_PAIRS``."""
    training, d = manifest.study.training, manifest.dimension
    vectors = () if training.optimizer == "momentum" and training.beta1 == 0 else _VECTORS[training.optimizer]
    lengths = dict.fromkeys(("average", *vectors) if training.leaves_average else vectors, d)
    if training.noise_correction == "tensor":
        lengths["square"] = len(manifest.tensor_sizes)
    pairs = _PAIRS[: 0 if training.optimizer != "adam" else 1 if training.noise_correction == "none" else 2]
    return lengths | dict.fromkeys(pairs, 2)


def _state_size(manifest: Manifest) -> int:
    """The size of what is remembered, in bytes."""
    return sum((8 if name in _PAIRS else 4) * length for name, length in _lengths(manifest).items())


@dataclass(frozen=True)
class _Place:
    """Where numbers of one ``dtype`` begin in bytes."""

    offset: int = 0
    dtype: str = "<f4"

    def read(self, content: Content, numbers: slice) -> NDArray[Any]:
        size = np.dtype(self.dtype).itemsize
        return np.frombuffer(
            content[self.offset + size * numbers.start : self.offset + size * numbers.stop], dtype=self.dtype
        )

    def write(self, file: IO[bytes], numbers: slice, values: NDArray[Any]) -> None:
        file.seek(self.offset + np.dtype(self.dtype).itemsize * numbers.start)
        file.write(values.astype(self.dtype, copy=False).data.cast("B"))


_NUMBERS: Final = _Place()


def _places(manifest: Manifest) -> dict[str, _Place]:
    """Where what is remembered lies, by its names."""
    places: dict[str, _Place] = {}
    offset = 0
    for name, length in _lengths(manifest).items():
        places[name] = _Place(offset, "<f8" if name in _PAIRS else "<f4")
        offset += length * np.dtype(places[name].dtype).itemsize
    return places


def _remembered(manifest: Manifest, state: Content) -> dict[str, _Place]:
    """``_places``, of which there are none before the first step. Raises EnvelopeError for another state."""
    if not state:
        return {}
    if len(state) != _state_size(manifest):
        raise _unfit(f"{len(state)} bytes that {manifest.study.training.optimizer} does not remember")
    return _places(manifest)


def _known_noise(due: DueStep) -> Callable[[int, int], KnownNoise] | None:
    """What the optimiser is told of the noise on a tensor's sum, from one number to another; None for nothing."""
    manifest, total = due.manifest, due.total
    correction = manifest.study.training.noise_correction
    if correction == "none":
        return None
    # Of what is 1 in the sum.
    unit = mean_gradient(manifest, np.ones(1, dtype=np.int64), due.survivors).item()
    variance = manifest.variance_in_sum(due.survivors, shown=due.shown, attempt=due.attempt) * unit * unit

    def of(start: int, end: int) -> KnownNoise:
        if correction == "coordinate":
            return KnownNoise(variance=variance)
        squares = sum(
            sum_of_squares(sum_from_bytes(manifest, total, at, min(at + _BLOCK, end)))
            for at in range(start, end, _BLOCK)
        )
        square = np.array([squares * unit * unit / (end - start)], dtype=np.float32)
        return KnownNoise(variance=variance, square=square, alike=end - start)

    return of


def _averaged(training: TrainingSection, round_: int, average: Vector, iterate: Vector) -> Vector:
    """The average after ``round_``, which came to that ``iterate``; of a block of each."""
    weight = average_weight(
        training.averaging, round_, rounds=training.rounds, averaged_rounds=training.averaged_rounds
    )
    return iterate if weight == 1 else average + weight * (iterate - average)


def _unfit(what: str) -> EnvelopeError:
    return EnvelopeError(
        what,
        why="the adapter could not be stepped as all sites step it",
        fix="the two ends run different studies or versions; compare their manifest hashes",
    )
