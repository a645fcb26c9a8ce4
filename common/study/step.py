"""The step from one adapter to the next, which the server takes and every site after it, from the same public sum.

It adds, subtracts, multiplies, divides and takes square roots, each of which IEEE 754 rounds in one way, and has
running products where the textbook has powers: so every machine comes to the same bits, and what came of a step is
compared by hash.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..crypto.identity import sha256
from ..errors import EnvelopeError
from ..model.adapter import Vector, vector_from_bytes, vector_sha256, vector_view
from ..model.optimizers import KnownNoise, OptimizerName, make_optimizer
from ..protocol.envelope import Bytes
from ..protocol.messages import packed, views
from ..schema import known
from ..secagg.encoding import centred, residue_dtype, residues, sum_of_squares
from .manifest import Manifest
from .rates import average_weight, rate_factor
from .training import TrainingSection

# The vectors that an optimiser remembers, float32, in this order; then come its pairs, of float64. Before them stands
# the average of the rounds' adapters, where the study has one.
_VECTORS: Final[dict[OptimizerName, tuple[str, ...]]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("mean", "square"),
}
_PAIRS: Final = ("powers", "noise")
_MOST_BYTES_PER_NUMBER: Final = 20
_BLOCK: Final = 1 << 20  # numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The adapter float32 [d] after a round, and what the optimiser remembers, as bytes: none before the first step."""

    adapter: Vector
    optimizer: Bytes = b""

    @property
    def adapter_sha256(self) -> str:
        """The adapter's hash, as the ledger has it."""
        return vector_sha256(self.adapter)

    @property
    def optimizer_sha256(self) -> str:
        """The hash of what the optimiser remembers, as the ledger has it."""
        return sha256(self.optimizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Missing:
    """What a site is sent of the adapter: what it lacks of the state before the last round, and of that round's sum."""

    before: Trained | None = None
    total: bytes | memoryview = b""

    def packed(self) -> list[Bytes]:
        """As it travels, packed but not put together: adapter, optimiser, sum; each empty where the site has it."""
        adapter = b"" if self.before is None else vector_view(self.before.adapter)
        return packed([adapter, b"" if self.before is None else self.before.optimizer, self.total])

    @classmethod
    def parse(cls, payload: Bytes, *, dimension: int) -> Self:
        """What ``packed`` gave, with the sum where it lies; raises EnvelopeError."""
        parts = views(payload)
        if len(parts) != 3:
            raise _unfit(f"{len(parts)} parts of the adapter where 3 were due")
        adapter, optimizer, total = parts
        if not adapter:
            return cls(total=total)
        return cls(
            before=Trained(adapter=vector_from_bytes(adapter, dimension=dimension), optimizer=optimizer),
            total=total,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LastStep:
    """The last step of a study: ``after`` came of ``before`` and ``total``; of the first adapter, nothing."""

    after: Trained
    before: Trained | None = None
    total: bytes = b""

    def missing(self, *, behind: int | None) -> Missing:
        """What a site lacks that is so many rounds ``behind``; None where it holds no adapter."""
        if behind == 0:
            return Missing()
        if self.before is None:
            return Missing(before=self.after)
        return Missing(before=None if behind == 1 else self.before, total=self.total)


def step(
    manifest: Manifest,
    before: Trained,
    aggregate: NDArray[np.signedinteger],
    survivors: Sequence[str],
    *,
    round_: int,
    shown: Sequence[str],
) -> Trained:
    """What comes of ``before`` by the ``aggregate`` [d] over the ``survivors``, in an attempt of ``manifest``.

    ``round_``, 1 the first, decides the learning rate and what becomes of the average; who of the survivors had
    ``shown`` the noise that was taken off decides how much was left to correct.

    Block by block, since each number has a step of its own: of what is computed on the way no vector is as long as
    the adapter. Raises EnvelopeError where ``before`` is no state of the study's optimiser.
    """
    training = manifest.study.training
    remembered = _remembered(manifest, before.optimizer)
    adapter, kept = np.empty(manifest.dimension, dtype=np.float32), bytearray(_state_size(manifest))
    after = _remembered(manifest, kept)
    schedule = {"rounds": training.rounds, "warmup_rounds": training.warmup_rounds}
    learning_rate = training.learning_rate * rate_factor(training.rate_decay, round_, **schedule)
    known_noise = _known_noise(manifest, survivors, shown)
    for tensor, (start, end) in enumerate(itertools.pairwise(manifest.tensor_starts)):
        noise = None if known_noise is None else known_noise(aggregate[start:end])
        for at in range(start, end, _BLOCK):
            block = slice(at, min(at + _BLOCK, end))
            # Of what is not of one number each there is one of a tensor, or a pair of all.
            places: dict[str, slice] = {name: slice(None) for name in _PAIRS}
            if training.noise_correction == "tensor":
                places["square"] = slice(tensor, tensor + 1)
            optimizer = make_optimizer(
                training.optimizer,
                learning_rate=learning_rate,
                beta1=training.beta1,
                beta2=training.beta2,
                noise=noise,
            )
            optimizer.restore({name: vector[places.get(name, block)] for name, vector in remembered.items()})
            # An adapter that is not finite is refused by those who get it.
            with np.errstate(over="ignore", invalid="ignore"):
                gradient = mean_gradient(manifest, aggregate[block], survivors).astype(np.float32)
                decayed = before.adapter[block] * (1 - learning_rate * training.weight_decay)
                adapter[block] = optimizer.step(decayed, gradient)
                average = remembered.get("average", before.adapter)[block]
                state = optimizer.state | {"average": _averaged(training, round_, average, adapter[block])}
            for name, vector in after.items():
                vector[places.get(name, block)] = state[name]
    return Trained(adapter=adapter, optimizer=kept)


def left(manifest: Manifest, trained: Trained) -> Vector:
    """The adapter float32 [d] that the study leaves, were it to end here: the average of its rounds, if it has one."""
    return np.require(_remembered(manifest, trained.optimizer).get("average", trained.adapter), requirements="W")


def average_sha256(manifest: Manifest, trained: Trained) -> str | None:
    """The hash of the average of the rounds' adapters, as the ledger has it; None where there is none."""
    average = _remembered(manifest, trained.optimizer).get("average")
    return None if average is None else vector_sha256(average)


def mean_gradient(
    manifest: Manifest, aggregate: NDArray[np.signedinteger], survivors: Sequence[str]
) -> NDArray[np.float64]:
    """The gradient [d] that the optimiser is given, from the aggregate [d] over the survivors.

    Divided by a public denominator, never by a true count. Distributed trust: q × the survivors' nominal units. Local
    trust: the survivors' share of all nominal units; the sites' mean change, negated, stands for a gradient.
    """
    units = sum(manifest.nominal_units(site) for site in survivors)
    if manifest.study.privacy.trust == "distributed":
        return manifest.lattice.decode(aggregate) / (manifest.study.privacy.sampling_probability * units)
    return -manifest.fixed_point.decode(aggregate) / (units / manifest.study.total_nominal_units)


def sum_bytes(manifest: Manifest, aggregate: NDArray[np.signedinteger]) -> bytes:
    """A round's sum as it is kept, hashed and sent: little-endian residues of the study's modulus [d]."""
    return residues(aggregate, known(manifest.study.secagg.modulus_bits)).tobytes()


def sum_from_bytes(manifest: Manifest, total: bytes | memoryview) -> NDArray[np.signedinteger]:
    """The centred sum [d] of such bytes, where they lie; raises EnvelopeError when their number is another."""
    if len(total) != sum_size(manifest):
        raise _unfit(f"a sum of {len(total)} bytes where {sum_size(manifest)} were due")
    return centred(np.frombuffer(total, dtype=residue_dtype(known(manifest.study.secagg.modulus_bits))))


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
    lengths = dict.fromkeys(vectors if training.averaging == "none" else ("average", *vectors), d)
    if training.noise_correction == "tensor":
        lengths["square"] = len(manifest.tensor_sizes)
    pairs = _PAIRS[: 0 if training.optimizer != "adam" else 1 if training.noise_correction == "none" else 2]
    return lengths | dict.fromkeys(pairs, 2)


def _state_size(manifest: Manifest) -> int:
    """The size of what is remembered, in bytes."""
    return sum((8 if name in _PAIRS else 4) * length for name, length in _lengths(manifest).items())


def _remembered(manifest: Manifest, state: Bytes) -> dict[str, NDArray[Any]]:
    """What is remembered, by its names, where it lies; nothing before the first step. Raises EnvelopeError."""
    if not state:
        return {}
    if len(state) != _state_size(manifest):
        raise _unfit(f"{len(state)} bytes that {manifest.study.training.optimizer} does not remember")
    found: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, length in _lengths(manifest).items():
        found[name] = np.frombuffer(state, dtype="<f8" if name in _PAIRS else "<f4", count=length, offset=offset)
        offset += found[name].nbytes
    return found


def _known_noise(
    manifest: Manifest, survivors: Sequence[str], shown: Sequence[str]
) -> Callable[[NDArray[np.signedinteger]], KnownNoise] | None:
    """What the optimiser is told of the noise on a tensor's sum, as a function of that; None if it corrects nothing."""
    correction = manifest.study.training.noise_correction
    if correction == "none":
        return None
    unit = mean_gradient(manifest, np.ones(1, dtype=np.int64), survivors).item()  # of what is 1 in the sum
    variance = manifest.variance_in_sum(survivors, shown=shown) * unit * unit

    def of(tensor: NDArray[np.signedinteger]) -> KnownNoise:
        if correction == "coordinate":
            return KnownNoise(variance=variance)
        square = np.array([sum_of_squares(tensor) * unit * unit / len(tensor)], dtype=np.float32)
        return KnownNoise(variance=variance, square=square, alike=len(tensor))

    return of


def _averaged(training: TrainingSection, round_: int, average: Vector, adapter: Vector) -> Vector:
    """The average after ``round_``, which left that ``adapter``; of a block of each."""
    weight = average_weight(
        training.averaging, round_, rounds=training.rounds, averaged_rounds=training.averaged_rounds
    )
    return adapter if weight == 1 else average + weight * (adapter - average)


def _unfit(what: str) -> EnvelopeError:
    return EnvelopeError(
        what,
        why="the adapter could not be stepped as all sites step it",
        fix="the two ends run different studies or versions; compare their manifest hashes",
    )
