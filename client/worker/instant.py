"""The instant at which an update leaves: public, so that nobody can tell by it what was drawn."""

import logging
import time
from collections.abc import Callable

# Computes an answer, and gives it away when it may leave; empty where the site stays silent.
Pace = Callable[[Callable[[], bytes]], bytes]
_log = logging.getLogger(__name__)


def at_once(compute: Callable[[], bytes]) -> bytes:
    """As soon as it is there: for a simulation, in which nobody watches."""
    return compute()


class AnswerInstant:
    """Every answer ``after_s`` after it was asked for, never earlier, and none that is not ready then.

    Counted from the message that asks for the update and not from the attempt's Begin: a server that held that message
    back could else choose how little time is left, and see from who is silent whose draw was large. What a site may
    have to compute is bounded (``common/privacy/draw_cap``), so that whether it is ready depends on its machine alone.
    """

    def __init__(
        self,
        after_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._after_s = after_s
        self._clock = clock
        self._sleep = sleep

    def __call__(self, compute: Callable[[], bytes]) -> bytes:
        """The answer at its instant; empty where it was not ready."""
        instant = self._clock() + self._after_s
        answer = compute()
        left = instant - self._clock()
        if left < 0:
            _log.error("the update was not ready when it was to leave: this machine is too slow, or does other work")
            return b""
        self._sleep(left)
        return answer
