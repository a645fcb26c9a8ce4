"""An example: what a model reads and is to predict, as tokens of one length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_LOSS = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A tokenised record, padded on the right to a length that all examples of a batch share.

    ``token_ids`` and ``labels`` are int32 [tokens]; a label is the token of its own position (the loss shifts them by
    one) or ``NO_LOSS``, as on all padding. What stands on the padding is without effect, because attention is causal.
    An example may have no label left, as when a prompt alone fills its length: it stays in the cohort, and its
    gradient is zero.
    """

    token_ids: NDArray[np.int32]
    labels: NDArray[np.int32]

    @classmethod
    def padding(cls, tokens: int) -> "Example":
        """One without tokens to predict: it fills a batch to its shape, and its gradient is zero."""
        return cls(token_ids=np.zeros(tokens, dtype=np.int32), labels=np.full(tokens, NO_LOSS, dtype=np.int32))

    @property
    def has_target(self) -> bool:
        """Whether a token is left to learn; the first of all is predicted from nothing."""
        return bool((self.labels[1:] != NO_LOSS).any())
