"""Optimisers in NumPy: post-processing of released numbers, so that they cost no privacy.

They compute in the type of the numbers that they are given, by +, −, ×, ÷ and √ alone: the same bits on every machine.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]  # of float32 or of float64
OptimizerName = Literal["sgd", "momentum", "adam", "disk"]
# Whether known noise is taken off second moments, and of what: each number's own, or one of each tensor.
NoiseCorrection = Literal["none", "coordinate", "tensor"]
ADAM_EPSILON = 1e-8


class Optimizer(Protocol):
    """Turns gradients into steps; its state is what a checkpoint has to keep."""

    @property
    def state(self) -> dict[str, Vector]:
        """Copies of the arrays that ``restore`` takes; empty before the first step and for a stateless one."""

    def restore(self, state: dict[str, Vector]) -> None:
        """Continue from a ``state``."""

    def step(self, parameters: Vector, gradient: Vector, *, kept: float = 1.0) -> Vector:
        """New parameters [d] from parameters [d] and a gradient [d]; the arguments are left alone.

        ``kept`` is the share of them that weight decay leaves beforehand.
        """

    def left(self, parameters: Vector) -> Vector:
        """What training leaves that ends at the ``parameters`` [d] of the last step: where the next begins, or not."""


@dataclass
class Sgd:
    """Gradient descent, with Polyak momentum where ``momentum`` is positive."""

    learning_rate: float
    momentum: float = 0.0
    _velocity: Vector | None = None

    @property
    def state(self) -> dict[str, Vector]:
        """``velocity`` [d], once there is one."""
        return {} if self._velocity is None else {"velocity": self._velocity.copy()}

    def restore(self, state: dict[str, Vector]) -> None:
        """Continue from a ``state``."""
        self._velocity = state["velocity"].copy() if "velocity" in state else None

    def step(self, parameters: Vector, gradient: Vector, *, kept: float = 1.0) -> Vector:
        """One step.

        >>> Sgd(learning_rate=0.5).step(np.array([1.0]), np.array([2.0]))
        array([0.])
        """
        if self.momentum == 0.0:
            return kept * parameters - self.learning_rate * gradient
        velocity = gradient if self._velocity is None else self.momentum * self._velocity + gradient
        self._velocity = velocity.copy()
        return kept * parameters - self.learning_rate * velocity

    def left(self, parameters: Vector) -> Vector:
        """The parameters."""
        return parameters


@dataclass
class Disk:
    """Gradient descent by a filtered gradient, each of which is taken ahead of where descent is (DiSK).

    Zhang et al. 2024 (arXiv 2410.03883), algorithm 1, with κ = ``gain`` and γ = (1 − κ)/κ. At this γ what a record
    adds is one gradient, at x + γ(x − x′) of the last two iterates x′ and x: so whoever computes gradients is given
    that point, and all else is post-processing. The estimate of the gradient is κ of the new one and 1 − κ of the last;
    the first is as it comes. With κ = 1 it is gradient descent.

    ``parameters`` are the points where gradients are taken; ``left`` is the iterate.
    """

    learning_rate: float
    gain: float
    _estimate: Vector | None = None
    _ahead: Vector | None = None

    @property
    def state(self) -> dict[str, Vector]:
        """``estimate`` [d] and ``ahead`` [d], γ times the last change of the iterate, once there are some."""
        if self._estimate is None or self._ahead is None:
            return {}
        return {"estimate": self._estimate.copy(), "ahead": self._ahead.copy()}

    def restore(self, state: dict[str, Vector]) -> None:
        """Continue from a ``state``."""
        self._estimate = state["estimate"].copy() if state else None
        self._ahead = state["ahead"].copy() if state else None

    def step(self, parameters: Vector, gradient: Vector, *, kept: float = 1.0) -> Vector:
        """One step; the first iterate is where the first gradient was taken.

        >>> disk = Disk(learning_rate=1.0, gain=0.5)
        >>> parameters = disk.step(np.array([8.0]), np.array([2.0]))
        >>> parameters, disk.left(parameters)
        (array([4.]), array([6.]))
        """
        last, iterate = self._estimate, self.left(parameters)
        self._estimate = gradient.copy() if last is None else (1 - self.gain) * last + self.gain * gradient
        stepped = kept * iterate - self.learning_rate * self._estimate
        self._ahead = (1 - self.gain) / self.gain * (stepped - iterate)
        return stepped + self._ahead

    def left(self, parameters: Vector) -> Vector:
        """The iterate behind the point where the next gradient is taken."""
        return parameters if self._ahead is None else parameters - self._ahead


@dataclass(frozen=True, kw_only=True)
class KnownNoise:
    """What is known of a step's noise: its ``variance`` in each coordinate of the gradient.

    Where coordinates share their second moment, ``square`` [1] is the mean square of all ``alike`` of them.
    """

    variance: float
    square: Vector | None = None
    alike: int = 1


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), with bias correction by running products of ``beta1`` and of ``beta2``.

    The variance of ``noise`` is taken off the second moments (Tang et al. 2024, DP-AdamBC). What is left of one is at
    least a standard error of the noise's own: of less nobody could tell that it is more than noise.
    """

    learning_rate: float
    beta1: float
    beta2: float
    noise: KnownNoise | None = None
    _powers: tuple[float, float] = (1.0, 1.0)
    _noise: tuple[float, float] = (0.0, 0.0)
    _mean: Vector | None = None
    _square: Vector | None = None

    @property
    def state(self) -> dict[str, Vector]:
        """``mean`` and ``square`` [d] and ``powers`` [2] of the betas, once there are some.

        With noise, ``noise`` [2]: its second moment, and the variance of a coordinate's. A shared square is [1].
        """
        if self._mean is None or self._square is None:
            return {}
        moments = {"mean": self._mean.copy(), "square": self._square.copy(), "powers": np.array(self._powers)}
        return moments if self.noise is None else moments | {"noise": np.array(self._noise)}

    def restore(self, state: dict[str, Vector]) -> None:
        """Continue from a ``state``."""
        self._powers = (float(state["powers"][0]), float(state["powers"][1])) if state else (1.0, 1.0)
        self._noise = (float(state["noise"][0]), float(state["noise"][1])) if "noise" in state else (0.0, 0.0)
        self._mean = state["mean"].copy() if state else None
        self._square = state["square"].copy() if state else None

    def step(self, parameters: Vector, gradient: Vector, *, kept: float = 1.0) -> Vector:
        """One step; the first moves every coordinate by about the learning rate."""
        shared = None if self.noise is None else self.noise.square
        squared = gradient * gradient if shared is None else shared
        mean = np.zeros_like(gradient) if self._mean is None else self._mean
        square = np.zeros_like(squared) if self._square is None else self._square
        power1, power2 = self._powers = (self._powers[0] * self.beta1, self._powers[1] * self.beta2)
        self._mean = self.beta1 * mean + (1 - self.beta1) * gradient
        self._square = self.beta2 * square + (1 - self.beta2) * squared
        unbiased_mean = self._mean / (1 - power1)
        unbiased_square = self._square / (1 - power2)
        if self.noise is not None:
            unbiased_square = self._without_noise(unbiased_square, self.noise, 1 - power2)
        return kept * parameters - self.learning_rate * unbiased_mean / (np.sqrt(unbiased_square) + ADAM_EPSILON)

    def left(self, parameters: Vector) -> Vector:
        """The parameters."""
        return parameters

    def _without_noise(self, square: Vector, noise: KnownNoise, weight: float) -> Vector:
        """The second moments without the noise's; ``weight`` is that of the steps so far."""
        rest, (moment, variance) = 1 - self.beta2, self._noise
        moment = self.beta2 * moment + rest * noise.variance
        # A normal number's square has twice the square of its variance; a mean of such has that by their number.
        variance = self.beta2 * self.beta2 * variance + rest * rest * 2 * noise.variance * noise.variance
        self._noise = (moment, variance)
        return np.maximum(square - moment / weight, math.sqrt(variance / noise.alike) / weight)


def make_optimizer(
    name: OptimizerName,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    gain: float = 0.7,
    noise: KnownNoise | None = None,
) -> Optimizer:
    """The optimiser that a manifest names; ``beta1`` is the momentum of ``momentum``, ``noise`` is for ``adam``.

    ``gain`` is the κ of ``disk``.

    >>> make_optimizer("sgd", learning_rate=1.0)
    Sgd(learning_rate=1.0, momentum=0.0, _velocity=None)
    """
    if name == "sgd":
        return Sgd(learning_rate)
    if name == "momentum":
        return Sgd(learning_rate, beta1)
    if name == "disk":
        return Disk(learning_rate, gain)
    return Adam(learning_rate, beta1, beta2, noise)
