"""The adapter as one flat vector: the only form in which it is clipped, noised, summed, hashed and sent."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EnvelopeError, ModelError
from ..system.content import Content, Stored, blocks, in_memory

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class AdapterLayout:
    """Tensors by name and shape <-> one float32 vector [d]: in order of their names, each row-major.

    >>> layout = AdapterLayout.of({"b": (2,), "a": (1, 2)})
    >>> layout.flatten({"a": np.array([[1.0, 2.0]]), "b": np.array([3.0, 4.0])})
    array([1., 2., 3., 4.], dtype=float32)
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shapes]
        if names != sorted(set(names)):
            raise ModelError(
                "the adapter's tensors are not in the order of their names, each once",
                why="all sites must cut the same vector at the same places",
                fix="make the layout with AdapterLayout.of",
            )

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "AdapterLayout":
        """The layout of tensors with these shapes, whatever order they come in."""
        return cls(tuple((name, tuple(shapes[name])) for name in sorted(shapes)))

    @property
    def dimension(self) -> int:
        """d, the length of the vector."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers of the vector each tensor has, in their order."""
        return tuple(math.prod(shape) for _, shape in self.shapes)

    @property
    def sha256(self) -> str:
        """SHA-256 over names and shapes, in lower-case hex."""
        return hashlib.sha256(json.dumps(self.shapes, separators=(",", ":")).encode()).hexdigest()

    def flatten(self, tensors: Mapping[str, NDArray[np.floating]]) -> Vector:
        """The tensors as one float32 vector [d]; raises ModelError unless names and shapes are the layout's."""
        if AdapterLayout.of({name: tensor.shape for name, tensor in tensors.items()}) != self:
            raise ModelError(
                "tensors do not have the names and shapes of the adapter",
                why="their numbers would land in other places of the vector",
                fix="use the model, rank and target modules that the study names",
            )
        vector = np.empty(self.dimension, dtype=np.float32)
        for name, view in self.unflatten(vector).items():
            view[...] = tensors[name]
        return vector

    def unflatten(self, vector: Vector) -> dict[str, Vector]:
        """The tensors as views into a vector [d]; raises ModelError when its length is another."""
        if vector.shape != (self.dimension,):
            raise ModelError(
                f"a vector of shape {list(vector.shape)} where the adapter has {self.dimension} numbers",
                why="it belongs to another model, rank or choice of target modules",
                fix="use the model, rank and target modules that the study names",
            )
        tensors, start = {}, 0
        for name, shape in self.shapes:
            end = start + math.prod(shape)
            tensors[name] = vector[start:end].reshape(shape)
            start = end
        return tensors


def vector_bytes(vector: Vector) -> bytes:
    """The vector as little-endian float32, as it is sent and hashed.

    >>> vector_bytes(np.array([1.0], dtype=np.float32)).hex()
    '0000803f'
    """
    return vector.astype("<f4", copy=False).tobytes()


def vector_view(vector: Vector) -> memoryview:
    """``vector_bytes`` where they lie, if they do."""
    return np.ascontiguousarray(vector, dtype="<f4").data.cast("B")


def vector_from_bytes(payload: Content, *, dimension: int) -> Vector:
    """The vector [dimension] of such bytes, where they lie if they may be changed there.

    Raises EnvelopeError when the length is another or a number not finite.
    """
    check_numbers(payload, dimension=dimension)
    return np.require(np.frombuffer(in_memory(payload), dtype="<f4"), dtype=np.float32, requirements="W")


def adapter_from(numbers: Content, *, dimension: int) -> Vector | Stored:
    """``vector_from_bytes`` of what is in memory; what is in a file stays there, after the same checks."""
    if not isinstance(numbers, Stored):
        return vector_from_bytes(numbers, dimension=dimension)
    check_numbers(numbers, dimension=dimension)
    return numbers


def loaded(adapter: Vector | Stored) -> Vector:
    """The vector that ``adapter_from`` gave, in memory. Raises StorageError."""
    return np.frombuffer(in_memory(adapter), dtype="<f4") if isinstance(adapter, Stored) else adapter


def check_numbers(numbers: Content, *, dimension: int) -> None:
    """Raises EnvelopeError unless these are the bytes of a vector [dimension] of finite numbers."""
    if len(numbers) != 4 * dimension:
        raise EnvelopeError(
            f"an adapter of {len(numbers)} bytes where {4 * dimension} were due",
            why="its numbers could not be told apart",
            fix="the two ends run different studies or versions; compare their manifest hashes",
        )
    if not all(np.isfinite(np.frombuffer(block, dtype="<f4")).all() for block in blocks(numbers)):
        raise EnvelopeError(
            "an adapter with numbers that are not finite",
            why="no record has a gradient there, so the attempt would spend privacy on nothing",
            fix="the learning rate is too large, or the sender faulty; resume from an earlier checkpoint",
        )


def vector_sha256(vector: Vector) -> str:
    """SHA-256 of ``vector_bytes``, in lower-case hex: the adapter's hash in messages and manifests."""
    return hashlib.sha256(vector_view(vector)).hexdigest()
