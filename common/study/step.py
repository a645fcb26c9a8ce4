"""The step from one adapter to the next, which the server takes and every site after it, from the same public sum.

It adds, subtracts, multiplies, divides and takes square roots, each of which IEEE 754 rounds in one way, and has
running products where the textbook has powers: so every machine comes to the same bits, and what came of a step is
compared by hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ..crypto.identity import sha256
from ..errors import EnvelopeError
from ..model.adapter import Vector, vector_from_bytes, vector_sha256, vector_view
from ..model.optimizers import Optimizer, OptimizerName, make_optimizer
from ..protocol.envelope import Bytes
from ..protocol.messages import packed, views
from ..schema import known
from ..secagg.encoding import centred, residue_dtype, residues
from .manifest import Manifest

# What an optimiser remembers, in this order: vectors [d] in float32, and scalars in float64.
_VECTORS: Final[dict[OptimizerName, tuple[str, ...]]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("mean", "square"),
}
_POWERS: Final = 2
_MOST_BYTES_PER_NUMBER: Final = 16
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
    manifest: Manifest, before: Trained, aggregate: NDArray[np.signedinteger], survivors: Sequence[str]
) -> Trained:
    """What comes of ``before`` by the ``aggregate`` [d] over the ``survivors``, in an attempt of ``manifest``.

    Block by block, since each number has a step of its own: of what is computed on the way no vector is as long as
    the adapter. Raises EnvelopeError where ``before`` is no state of the study's optimiser.
    """
    remembered, powers = _vectors(manifest, before.optimizer)
    adapter = np.empty(manifest.dimension, dtype=np.float32)
    names = _VECTORS[manifest.study.training.optimizer]
    kept = bytearray(4 * manifest.dimension * len(names))
    after = np.frombuffer(kept, dtype="<f4").reshape(len(names), manifest.dimension)
    state: dict[str, NDArray[np.floating]] = {}
    for start in range(0, manifest.dimension, _BLOCK):
        block = slice(start, start + _BLOCK)
        optimizer = _optimizer(manifest, remembered[:, block], powers)
        # An adapter that is not finite is refused by those who get it.
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = mean_gradient(manifest, aggregate[block], survivors).astype(np.float32)
            adapter[block] = optimizer.step(before.adapter[block], gradient)
        state = optimizer.state
        if state:  # momentum with a beta1 of zero has none
            after[:, block] = [state[name] for name in names]
    del after  # so that what it is a view of may grow
    if "powers" in state:
        kept += state["powers"].astype("<f8").tobytes()
    return Trained(adapter=adapter, optimizer=kept if state else b"")


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
    return _MOST_BYTES_PER_NUMBER * dimension + 8 * _POWERS + 64


def _vectors(manifest: Manifest, state: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What an optimiser remembers, where it lies: vectors [vectors, d], none before the first step, and scalars."""
    name, d = manifest.study.training.optimizer, manifest.dimension
    vectors, scalars = len(_VECTORS[name]), 8 * _POWERS if name == "adam" else 0
    if not state:
        return np.empty((0, d), dtype=np.float32), np.empty(0)
    if len(state) != 4 * d * vectors + scalars:
        raise _unfit(f"{len(state)} bytes that {name} does not remember")
    numbers = np.frombuffer(state, dtype="<f4", count=d * vectors).reshape(vectors, d)
    return numbers, np.frombuffer(state, dtype="<f8", offset=4 * d * vectors)


def _optimizer(manifest: Manifest, vectors: NDArray[np.float32], powers: NDArray[np.float64]) -> Optimizer:
    """The study's optimiser, of a block whose ``vectors`` are these."""
    training = manifest.study.training
    optimizer = make_optimizer(
        training.optimizer, learning_rate=training.learning_rate, beta1=training.beta1, beta2=training.beta2
    )
    if len(vectors):
        restored: dict[str, NDArray[np.floating]] = dict(zip(_VECTORS[training.optimizer], vectors, strict=True))
        optimizer.restore(restored | ({"powers": powers} if powers.size else {}))
    return optimizer


def _unfit(what: str) -> EnvelopeError:
    return EnvelopeError(
        what,
        why="the adapter could not be stepped as all sites step it",
        fix="the two ends run different studies or versions; compare their manifest hashes",
    )
