"""What one step computed from a site's records, before any noise: for that site alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.privacy.clipping import Clipping, clipping_factors


@dataclass(frozen=True, kw_only=True, eq=False)
class StepFigures:
    """Exact figures of one draw, which no noise protects: never part of anything that leaves, and in no log.

    Attributes:
        norms: float64 [units], each drawn unit's gradient before clipping; not finite where the unit counts as zero.
        clipping_norm: what they are clipped to, as ``clipping`` says.
        signal: the norm of the clipped gradients' sum.
        noise: the norm that the site's own noise on it has in the mean square; 0 without noise.
        records: how many were computed.
        tokens: how many these hold; ``computed`` with padding and with empty rows of batches.
        batches: how many physical batches there were of each shape, as ``4 x 384``.
        seconds: all that the step took; of it ``gradients_s``, ``sums_s`` (clip, integers, sum), and ``noise_s``, in
            which noise alone was waited for.
    """

    norms: NDArray[np.float64]
    clipping_norm: float
    clipping: Clipping
    signal: float
    noise: float
    records: int
    tokens: int
    computed: int
    batches: Mapping[str, int]
    seconds: float
    gradients_s: float
    sums_s: float
    noise_s: float

    @property
    def sound(self) -> NDArray[np.float64]:
        """The norms of the units that count."""
        return self.norms[np.isfinite(self.norms)]

    @property
    def shortened(self) -> float | None:
        """The share of the units that count whose gradients clipping made shorter; None where none counts."""
        factors = clipping_factors(self.sound, self.clipping, clipping_norm=self.clipping_norm)
        return float(np.mean(factors < 1)) if len(factors) else None


# Is told of a step once its noise is added.
Observer = Callable[[StepFigures], None]
