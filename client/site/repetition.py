"""What records say more than once, by digests: within a patient, and among several."""

from array import array
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES: Final = 8  # of a million records two have one digest with a probability below one in ten million


class Repetition:
    """Told of each record in turn, it holds 16 bytes of it."""

    def __init__(self) -> None:
        self._contents, self._of_patients = array("Q"), array("Q")

    def add(self, patient: str, content: bytes) -> None:
        """Tell of one more: whose it is, and all that it says."""
        self._contents.append(_digest(content))
        self._of_patients.append(_digest(b"\0".join([patient.encode(), content])))

    @property
    def repeated(self) -> int:
        """How many records say what another of the same patient says."""
        return len(self._of_patients) - len(self._first())

    @property
    def shared(self) -> int:
        """How many contents several patients have."""
        _, patients = np.unique(np.asarray(self._contents)[self._first()], return_counts=True)
        return int((patients > 1).sum())

    def _first(self) -> NDArray[np.int64]:
        """Where a patient says something for the first time."""
        return np.unique(np.asarray(self._of_patients), return_index=True)[1]


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=_DIGEST_BYTES).digest())
