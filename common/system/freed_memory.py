"""What a process has freed, for others to have."""

import ctypes
from typing import Final

_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_freed() -> None:
    """Have malloc give the system back what it keeps of what was freed, between what is in use, too (malloc_trim(3)).

    Of large tensors that come and go it keeps up to an adapter's size, in each round some more. Only glibc can.
    """
    if _TRIM is not None:
        _TRIM(0)
