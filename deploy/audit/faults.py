"""Faults that are planted into a twin, so that its audit shows what it would have found."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...common.audit.evidence import Protection
from ...common.crypto.csprng import derived_key, fresh_key
from ...common.privacy.mechanism import LayeredGaussian, Mechanism, RoundedGaussian
from ...common.privacy.rounded_gaussian import MIN_STDDEV, add_rounded_gaussian


@dataclass(frozen=True, kw_only=True)
class Where:
    """A release: the number of its site among those whose noise nobody else knows, and of the step, both from 0."""

    site: int
    step: int


# What becomes of a site's noise in one release.
Broken = Callable[[RoundedGaussian, Where], RoundedGaussian]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to an honest site's release; ``name`` as the evidence has it.

    Attributes:
        base: what becomes of the part of a site's noise that stays; the layers above it are added and taken off.
        leaves_mask: whether the first site adds a mask that nobody takes off.
        least_steps: how many steps it takes for the fault to exist.
    """

    name: Protection
    base: Broken
    leaves_mask: bool = False
    least_steps: int = 1

    def of(self, mechanism: Mechanism, where: Where) -> Mechanism:
        """The mechanism with the fault in it."""
        if isinstance(mechanism, LayeredGaussian):
            return replace(mechanism, base=self.base(mechanism.base, where))
        assert isinstance(mechanism, RoundedGaussian)  # noqa: S101  # a study without noise is not audited
        return self.base(mechanism, where)


@dataclass(frozen=True, kw_only=True)
class _Silent(RoundedGaussian):
    """Noise that is credited, and not added."""

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Leave ``total`` [d] as it is."""


@dataclass(frozen=True, kw_only=True)
class _Repeated(RoundedGaussian):
    """The same draws at every call."""

    key: bytes = field(repr=False)

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Add what ``key`` decides to ``total`` [d], in place."""
        add_rounded_gaussian(total, self.noise_stddev, self.key)


def _as_claimed(base: RoundedGaussian, where: Where) -> RoundedGaussian:
    return base


def _off(base: RoundedGaussian, where: Where) -> RoundedGaussian:
    return _Silent(noise_stddev=base.noise_stddev)


def _forgotten_at_one(base: RoundedGaussian, where: Where) -> RoundedGaussian:
    return _off(base, where) if where.site == 0 else base


def _halved(base: RoundedGaussian, where: Where) -> RoundedGaussian:
    return RoundedGaussian(noise_stddev=max(MIN_STDDEV, base.noise_stddev // 2))


def _reused() -> Broken:
    """The draws of the first step once more in the second, at every site."""
    key = fresh_key()

    def broken(base: RoundedGaussian, where: Where) -> RoundedGaussian:
        if where.step > 1:
            return base
        return _Repeated(noise_stddev=base.noise_stddev, key=derived_key(key, where.site.to_bytes(4, "little")))

    return broken


AS_CLAIMED: Final = Fault(name="as claimed", base=_as_claimed)


def faults() -> tuple[Fault, ...]:
    """Those that every audit is held against; some have secrets of their own, so that no two calls give the same."""
    return (
        Fault(name="noise off", base=_off),
        Fault(name="noise forgotten at one site", base=_forgotten_at_one),
        Fault(name="half the noise", base=_halved),
        Fault(name="a mask left in", base=_as_claimed, leaves_mask=True),
        Fault(name="a draw reused", base=_reused(), least_steps=2),
    )
