"""The sum of a step's units: clipped, made integers, checked and added where their gradients were computed."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.privacy.clipping import clipping_factors
from ...common.privacy.mechanism import Lattice

# Numbers whose squares are added in one tree. What any two numbers' squares are added in follows from their places.
_TREE: Final = 1 << 14
# Sums of a tree that are left until all trees have come so far: short work costs more in calls than in additions.
_LEFT: Final = 1 << 8
# Double-precision numbers that are worked on at a time: what keeps a GPU busy; of processors, what a core's cache holds
# and PyTorch leaves to one thread. Of several each would wait for the others after every operation: a tenth is gained
# where nothing else runs, and where noise is drawn beside it seconds are lost.
_AT_A_TIME: Final = {"cpu": 1 << 15, "cuda": 1 << 24}
# Added and taken off again, it leaves a number below 2^51 at the nearest integer, ties at the even one, as ``round_``
# does, which PyTorch spreads over its threads however short it is; a longer one stays longer than any bound.
_ROUNDING: Final = 1.5 * 2.0**52
_INTEGERS: Final = {32: torch.int32, 64: torch.int64}


class UnitSum:
    """Units' gradients as integers of a lattice, summed in integers of ``bits`` [d] on the device of the gradients.

    *Formal guarantee.* ``add`` adds for each row a vector of integers of Euclidean norm at most
    ``lattice.sensitivity``, whatever the row holds, and that vector is a function of the row alone: adding or removing
    one unit moves the sum by at most ``lattice.sensitivity`` (Abadi et al. 2016, algorithm 1, on integers;
    common/privacy/MECHANISM.md). It rests on the check of the integers' norm and not on the clipping, and the check is
    exact: below 2**53 a sum of integers in double precision is, in any order; beyond it the rounded sum stays above
    2**52, and the squared sensitivity is below 2**46 (``Lattice`` has at most 2**32 dimensions, so that every integer
    that passes is below 2**23, and held by the float32 that the gradient was in). NaN passes no comparison.

    Of 32 ``bits`` the sum is that of 64, modulo 2^32: additions carry nowhere else. It takes half the memory.

    The same bits come out on every device, whatever its threads: each number is multiplied and rounded by itself
    (IEEE 754), and the squares for the norm are added in a fixed binary tree, element by element.
    """

    def __init__(self, lattice: Lattice, device: torch.device, *, bits: int = 64) -> None:
        """``bits`` are 32 or 64."""
        self._lattice = lattice
        self._total = torch.zeros(lattice.dimension, dtype=_INTEGERS[bits], device=device)
        self._at_a_time = _AT_A_TIME[device.type]

    def add(self, gradients: torch.Tensor) -> torch.Tensor:
        """Add the integers of ``gradients``, float32 [units, d], which are overwritten; their norms, float64 [units].

        A row is clipped as the lattice says, and counts as zero where it is not finite.
        """
        together = max(1, self._at_a_time // (2 * _TREE))  # so that two trees of each are worked on at a time
        return torch.cat([self._add(rows) for rows in torch.split(gradients, together)])

    def _add(self, gradients: torch.Tensor) -> torch.Tensor:
        norms = self._norms(gradients)
        lattice = self._lattice
        clipped = clipping_factors(norms, lattice.clipping, clipping_norm=lattice.clipping_norm)
        factors = clipped[:, None] * lattice.scale
        squared = torch.zeros_like(norms)
        for block in self._blocks(gradients, len(gradients)):
            integers = torch.mul(block, factors).add_(_ROUNDING).sub_(_ROUNDING)
            block.copy_(integers)
            squared.add_(_halved(integers.square_(), until=self._at_a_time // 2).sum(dim=1))  # as above: by one thread
        within = (squared <= float(self._lattice.sensitivity**2))[:, None]
        totals = self._blocks(self._total[None], len(gradients))
        for block, total in zip(self._blocks(gradients, len(gradients)), totals, strict=True):
            integers = torch.where(within, block, 0.0).to(self._total.dtype)
            total.add_(integers.sum(dim=0) if len(integers) > 1 else integers)
        return norms

    @property
    def total(self) -> NDArray[np.signedinteger]:
        """The sum, int64 or int32 [d], in the processors' memory: not to be released."""
        total: NDArray[np.signedinteger] = self._total.cpu().numpy()
        return total

    def _norms(self, gradients: torch.Tensor) -> torch.Tensor:
        """Each row's Euclidean norm, float64 [units], from squares added in an order that follows from their places."""
        units, dimension = gradients.shape
        # Made before: were each block's sums kept where it leaves them, malloc would put them into what the block has
        # freed, the next block would not fit there, and memory would grow by twice the gradients'.
        sums = torch.empty(units, -(-dimension // _TREE), _LEFT, dtype=torch.float64, device=gradients.device)
        done = 0
        for block in self._blocks(gradients, units):
            padding = -block.shape[1] % _TREE
            whole = torch.nn.functional.pad(block, (0, padding)) if padding else block
            trees = _halved(whole.reshape(units, -1, _TREE).double().square_(), until=_LEFT)
            sums[:, done : done + trees.shape[1]] = trees
            done += trees.shape[1]
        trees = _halved(sums, until=1)[..., 0]
        return _halved(trees, until=1)[..., 0].sqrt_()

    def _blocks(self, rows: torch.Tensor, units: int) -> Sequence[torch.Tensor]:
        """Views of all columns: whole trees, as many as are worked on at a time where there are so many units."""
        trees = max(1, self._at_a_time // (units * _TREE))
        return torch.split(rows, trees * _TREE, dim=1)


def _halved(values: torch.Tensor, *, until: int) -> torch.Tensor:
    """The sums over the last dimension, by halves: value i and value i + half, until no more than ``until`` are left.

    Where there are not 2^k of them, zeros stand for the others, which change no sum. ``values`` is overwritten.
    """
    count = values.shape[-1]
    while count > until:
        half = 1 << (count - 1).bit_length() >> 1
        values[..., : count - half].add_(values[..., half:count])
        count = half
    return values[..., :count]
