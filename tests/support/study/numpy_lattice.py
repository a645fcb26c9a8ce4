"""The oracle of ``UnitSum``: one unit's integers by NumPy, as the mechanism's definition says them."""

import math

import numpy as np
from numpy.typing import NDArray

from grandrounds.common.privacy.mechanism import Lattice

TREE = 1 << 14


def integers_of(lattice: Lattice, gradient: NDArray[np.float32]) -> NDArray[np.int64]:
    """What a unit adds to the sum, int64 [d]: its clipped gradient rounded, or zeros where that is too long."""
    with np.errstate(all="ignore"):
        norm = norm_of(gradient)
        factor = lattice.clipping_norm / norm if norm > lattice.clipping_norm else 1.0
        factor = lattice.clipping_norm / (norm + 0.01) if lattice.clipping == "auto" else factor
        rounded = np.rint(gradient.astype(np.float64) * (factor * lattice.scale))
    if not np.isfinite(rounded).all() or np.abs(rounded).max(initial=0) > lattice.sensitivity:
        return np.zeros(lattice.dimension, dtype=np.int64)
    integers = rounded.astype(np.int64)
    within = sum(int(value) ** 2 for value in integers) <= lattice.sensitivity**2
    return integers if within else np.zeros_like(integers)


def norm_of(gradient: NDArray[np.float32]) -> float:
    """The Euclidean norm, squares added in the fixed tree."""
    squares = np.square(gradient.astype(np.float64))
    return math.sqrt(_tree([_tree(list(squares[start : start + TREE])) for start in range(0, len(squares), TREE)]))


def _tree(values: list[float]) -> float:
    while len(values) > 1:
        half = 1 << (len(values) - 1).bit_length() >> 1
        values = [
            value + (values[half + i] if half + i < len(values) else 0.0) for i, value in enumerate(values[:half])
        ]
    return float(values[0])
