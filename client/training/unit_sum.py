"""The sum of a step's units: clipped, made integers, checked and added where their gradients were computed."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.privacy.mechanism import Lattice

# Numbers whose squares are added in one tree. What any two numbers' squares are added in follows from their places.
_TREE: Final = 1 << 14
# Double-precision numbers that are worked on at a time: what a core's cache holds, and what keeps a GPU busy.
_AT_A_TIME: Final = {"cpu": 1 << 17, "cuda": 1 << 24}


class UnitSum:
    """Units' gradients as integers of a lattice, summed in int64 [d] on the device of the gradients.

    *Formal guarantee.* ``add`` adds for each row a vector of integers of Euclidean norm at most
    ``lattice.sensitivity``, whatever the row holds, and that vector is a function of the row alone: adding or removing
    one unit moves the sum by at most ``lattice.sensitivity`` (Abadi et al. 2016, algorithm 1, on integers;
    common/privacy/MECHANISM.md). It rests on the check of the integers' norm and not on the clipping, and the check is
    exact: below 2**53 a sum of integers in double precision is, in any order; beyond it the rounded sum stays above
    2**52, and the squared sensitivity is below 2**46 (``Lattice`` has at most 2**32 dimensions, so that every integer
    that passes is below 2**23, and held by the float32 that the gradient was in). NaN passes no comparison.

    The same bits come out on every device, whatever its threads: each number is multiplied and rounded by itself
    (IEEE 754), and the squares for the norm are added in a fixed binary tree, element by element.
    """

    def __init__(self, lattice: Lattice, device: torch.device) -> None:
        self._lattice = lattice
        self._total = torch.zeros(lattice.dimension, dtype=torch.int64, device=device)
        self._at_a_time = _AT_A_TIME[device.type]

    def add(self, gradients: torch.Tensor) -> torch.Tensor:
        """Add the integers of ``gradients``, float32 [units, d], which are overwritten; their norms, float64 [units].

        A row is scaled down to norm ``clipping_norm`` where it is longer, and counts as zero where it is not finite.
        """
        norms = self._norms(gradients)
        bound = self._lattice.clipping_norm
        factors = torch.where(norms > bound, bound / norms, 1.0) * self._lattice.scale
        squared = torch.zeros_like(norms)
        for block in self._blocks(gradients):
            integers = block.double().mul_(factors[:, None]).round_()
            block.copy_(integers)
            squared += integers.square_().sum(dim=1)
        within = squared <= float(self._lattice.sensitivity**2)
        for block, total in zip(self._blocks(gradients), self._blocks(self._total[None], like=gradients), strict=True):
            total += torch.where(within[:, None], block, 0.0).to(torch.int64).sum(dim=0)
        return norms

    @property
    def total(self) -> NDArray[np.int64]:
        """The sum, int64 [d], in the processors' memory: not to be released."""
        total: NDArray[np.int64] = self._total.cpu().numpy()
        return total

    def _norms(self, gradients: torch.Tensor) -> torch.Tensor:
        """Each row's Euclidean norm, float64 [units], from squares added in an order that follows from their places."""
        sums = []
        for block in self._blocks(gradients):
            squares = torch.zeros(*_in_trees(block), dtype=torch.float64, device=block.device)
            squares.flatten(1)[:, : block.shape[1]] = block
            sums.append(_tree_sum(squares.square_()))
        return _tree_sum(torch.cat(sums, dim=1)).sqrt_()

    def _blocks(self, rows: torch.Tensor, *, like: torch.Tensor | None = None) -> Sequence[torch.Tensor]:
        """Views of all columns: whole trees, as many as are worked on at a time where there are the rows ``like``."""
        trees = max(1, self._at_a_time // (len(rows if like is None else like) * _TREE))
        return torch.split(rows, trees * _TREE, dim=1)


def _in_trees(block: torch.Tensor) -> tuple[int, int, int]:
    return len(block), -(-block.shape[1] // _TREE), _TREE


def _tree_sum(values: torch.Tensor) -> torch.Tensor:
    """The sums over the last dimension, by halves: value i and value i + half, until one is left.

    Where there are not 2^k of them, zeros stand for the others, which change no sum. ``values`` is overwritten.
    """
    count = values.shape[-1]
    half = 1 << max(count - 1, 0).bit_length() >> 1
    while half:
        values[..., : count - half] += values[..., half:count]
        count, half = half, half >> 1
    return values[..., 0]
