"""The mechanism: a unit's contribution as a bounded integer vector, and the integer noise that hides it."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PrivacyError
from .clipping import Clipping
from .rounded_gaussian import MAX_STDDEV, MIN_STDDEV, add_rounded_gaussian
from .trust import Trust

MAX_SENSITIVITY: Final = 1 << 23


def honest_shares(*, trust: Trust, threshold: int, corrupt_sites: int) -> int:
    """The least number h of honest sites in a released sum, whose noise together has at least the claimed variance.

    Distributed: at least ``threshold`` sites are in every sum that is unmasked, and the adversary knows the noise of
    at most ``corrupt_sites`` of them, so h is the difference. Where as few last, all of their noise stays; where more
    do, less of each one's (``noise_shares``). Local: a site relies on its own noise only, h = 1.

    Raises PrivacyError where distributed trust leaves h < 2 (a coalition could see one site's sum under a share of
    the noise only) or assumes that no site at all is curious.
    """
    if trust == "local":
        return 1
    if corrupt_sites < 1:
        raise PrivacyError(
            f"corrupt_sites is {corrupt_sites}",
            why="every site knows its own noise and can subtract it, so distributed noise must allow for one",
            fix="set corrupt_sites to 1 or more",
        )
    shares = threshold - corrupt_sites
    if shares < 2:
        raise PrivacyError(
            f"threshold {threshold} with {corrupt_sites} corrupt sites leaves {shares} honest noise shares",
            why="with fewer than 2 the server and the corrupt sites could isolate the sum of one hospital",
            fix="raise the threshold, tolerate fewer corrupt sites, or use local trust",
        )
    return shares


def site_noise_stddev(*, noise_multiplier: float, sensitivity: int, honest_shares: int | Fraction) -> int:
    """The noise one site adds: the least integer sigma for which h shares reach ``noise_multiplier * sensitivity``.

    That is ceil(z * Delta / sqrt(h)), computed exactly: sigma^2 h >= (z Delta)^2. A part of a site's noise is a share
    of which there need be more, and not a whole number. Raises PrivacyError unless it lies
    in 64 .. 2^30, where the sampler is exact and the sum of rounded Gaussians is as private as one Gaussian.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0 and sensitivity > 0 and honest_shares > 0):
        raise PrivacyError(
            f"noise multiplier {noise_multiplier}, sensitivity {sensitivity} and {honest_shares} shares",
            why="without positive, finite values there is no noise",
            fix="give positive numbers",
        )
    variance = (Fraction(noise_multiplier) * sensitivity) ** 2 / honest_shares
    stddev = math.isqrt(math.ceil(variance) - 1) + 1
    if not MIN_STDDEV <= stddev <= MAX_STDDEV:
        raise PrivacyError(
            f"a site's noise would have a standard deviation of {stddev} lattice steps",
            why="the guarantee is proved from 64 to 2^30",
            fix="change the noise multiplier, or train more parameters or fewer",
        )
    return stddev


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """How a clipped gradient of a fixed dimension becomes integers, and how far one unit can then move their sum.

    A gradient of norm at most ``clipping_norm``, times ``scale`` and rounded, has a norm of at most ``sensitivity``:
    rounding moves each coordinate by at most 1/2, the norm by at most sqrt(d)/2. Who sums units adds none that is
    longer (``client/training/unit_sum``).

    Attributes:
        dimension: d, the number of trainable parameters.
        clipping_norm: C, the largest Euclidean norm of a clipped gradient.
        clipping: how a gradient is brought to it.
        least_norm: how long, at least, a gradient of the norm C is to be in integers, so that noise is wide enough.
        scale: s, the least power of two with s C >= 50 sqrt(d), so that the roundings cost about 1 % of the norm, and
            s C >= ``least_norm``.
        sensitivity: Delta = ceil(s C + sqrt(d) / 2).
    """

    dimension: int
    clipping_norm: float
    clipping: Clipping = "norm"
    least_norm: float = 0.0
    scale: float = field(init=False)
    sensitivity: int = field(init=False)

    def __post_init__(self) -> None:
        """Raises PrivacyError unless there is a dimension, 2^-40 <= clipping_norm <= 2^40, and Delta is below 2^23."""
        if not (1 <= self.dimension <= 1 << 32 and 2.0**-40 <= self.clipping_norm <= 2.0**40):
            raise PrivacyError(
                f"dimension {self.dimension} with clipping norm {self.clipping_norm}",
                why="such a lattice has no usable resolution",
                fix="use 1 to 2^32 parameters and a clipping norm near the gradients' norms, often 0.1 to 10",
            )
        norm = Fraction(self.clipping_norm)
        least_squared = max(Fraction(2500 * self.dimension), Fraction(self.least_norm) ** 2)
        exponent = math.floor(math.log2(math.sqrt(least_squared) / self.clipping_norm)) - 1
        while (Fraction(2) ** exponent * norm) ** 2 < least_squared:
            exponent += 1
        root = Fraction(math.isqrt((self.dimension << 64) - 1) + 1, 1 << 32)  # sqrt(d), rounded up
        object.__setattr__(self, "scale", math.ldexp(1.0, exponent))
        object.__setattr__(self, "sensitivity", math.ceil(Fraction(2) ** exponent * norm + root / 2))
        if self.sensitivity >= MAX_SENSITIVITY:
            raise PrivacyError(
                f"gradients would have to be up to {self.sensitivity} long in integers",
                why="their norms are checked exactly below 2^23, and narrower integers leave too little room for noise",
                fix="raise the noise multiplier, or have fewer sites",
            )

    def decode(self, integers: NDArray[np.signedinteger]) -> NDArray[np.float64]:
        """Integers [d] back in the gradients' units."""
        return integers / self.scale


class Mechanism(Protocol):
    """Adds one site's noise to the integer sum over its sampled units."""

    @property
    def noise_stddev(self) -> float:
        """The standard deviation of the noise, in lattice steps."""

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Add noise to ``total`` [d] in place."""


@dataclass(frozen=True, kw_only=True)
class RoundedGaussian:
    """Adds round(N(0, noise_stddev^2)) to each coordinate, drawn exactly and from a fresh key on every call.

    Formal guarantee: for an integer sum v, v + round(N) = round(v + N), so one site's release is post-processing of
    the Gaussian mechanism with noise multiplier noise_stddev / sensitivity (Dwork and Roth 2014, appendix A, and every
    later analysis of it). The sum of h such shares is, up to the factor of the lemma in MECHANISM.md,
    post-processing of the Gaussian mechanism with deviation sqrt(h) * noise_stddev (MECHANISM.md beside this file).
    """

    noise_stddev: int

    def __post_init__(self) -> None:
        """Raises PrivacyError unless ``noise_stddev`` is an integer in 64 .. 2^30."""
        if not (isinstance(self.noise_stddev, int) and MIN_STDDEV <= self.noise_stddev <= MAX_STDDEV):
            raise PrivacyError(
                f"noise_stddev is {self.noise_stddev}",
                why="the guarantee is proved for integers from 64 to 2^30",
                fix="take it from site_noise_stddev",
            )

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Add a rounded Gaussian to each coordinate of ``total`` [d], integers or residues, in place."""
        add_rounded_gaussian(total, self.noise_stddev)


@dataclass(kw_only=True)
class LayeredGaussian:
    """``base``, and rounded Gaussians of the given deviations under the given secret keys, for one release.

    Formal guarantee: to whoever has none of the keys, that of a ``RoundedGaussian`` for the variance of all of it; to
    whoever has some, for that of the rest (``site_noise``). A key serves one release: the sum of two with one noise,
    and their difference, would have less than is claimed of either.
    """

    base: RoundedGaussian
    layers: tuple[tuple[int, bytes], ...]
    is_spent: bool = field(default=False, init=False)

    @property
    def noise_stddev(self) -> float:
        """Of all layers together."""
        return math.sqrt(self.base.noise_stddev**2 + sum(stddev**2 for stddev, _ in self.layers))

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Add base and layers to ``total`` [d] in place; raises RuntimeError the second time."""
        if self.is_spent:
            raise RuntimeError("the layers of one attempt would be added to a second release")
        self.is_spent = True
        self.base.add_noise(total)
        for stddev, key in self.layers:
            add_rounded_gaussian(total, stddev, key)


@dataclass(frozen=True, kw_only=True)
class NoNoise:
    """Adds nothing, and so promises nothing: for synthetic data, tests and comparisons only."""

    noise_stddev: int = 0

    def add_noise(self, total: NDArray[np.integer]) -> None:
        """Leave ``total`` [d] as it is."""
