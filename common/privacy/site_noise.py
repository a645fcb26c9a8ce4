"""How wide the noise is that one site adds: a base that stays, and layers that are taken off where more sites last."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from .mechanism import site_noise_stddev
from .noise_layers import NoiseLayer, noise_levels, noise_shares
from .trust import Trust


@dataclass(frozen=True, kw_only=True)
class SiteNoise:
    """The noise of one site in one release: ``stddev`` of its base, in lattice steps, and its ``layers``, rising.

    *Formal guarantee*, under distributed trust: whatever level k is taken off, k - c sites together have a variance of
    at least (z Delta)^2 left, as each has ``variance_left(k)`` >= (z Delta)^2 / (k - c).
    """

    stddev: int
    layers: tuple[NoiseLayer, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        noise_multiplier: float,
        sensitivity: int,
        trust: Trust,
        sites: int,
        threshold: int,
        corrupt_sites: int,
    ) -> Self:
        """The least integers that give the guarantee; raises PrivacyError where one is outside 64 .. 2^30."""
        levels = noise_levels(sites=sites, threshold=threshold)
        base, *above = (
            site_noise_stddev(noise_multiplier=noise_multiplier, sensitivity=sensitivity, honest_shares=share)
            for share in noise_shares(trust=trust, sites=sites, threshold=threshold, corrupt_sites=corrupt_sites)
        )
        # Local trust has a base alone.
        layers = [NoiseLayer(level=level, stddev=stddev) for level, stddev in zip(levels, above, strict=False)]
        return cls(stddev=base, layers=tuple(layers))

    def variance_left(self, level: int = 0) -> int:
        """The variance of what stays where the layers up to ``level`` are taken off; of all, where none is."""
        return self.stddev**2 + sum(layer.stddev**2 for layer in self.layers if layer.level > level)


def variance_in_sum(noise: SiteNoise, survivors: Sequence[str], *, stripped: Sequence[str], level: int) -> int:
    """The variance of the noise in a sum, of whose sites the ``stripped`` had their layers up to ``level`` taken off.

    >>> noise = SiteNoise(stddev=100, layers=(NoiseLayer(level=5, stddev=70),))
    >>> variance_in_sum(noise, ["a", "b", "c", "d", "e"], stripped=["a", "b", "c", "d"], level=5)
    54900
    """
    return sum(noise.variance_left(level if site in stripped else 0) for site in survivors)
