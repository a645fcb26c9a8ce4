"""Crash points: the places around every write to disk at which a process may die."""

from collections.abc import Callable
from enum import StrEnum, auto


class CrashPoint(StrEnum):
    """Where a process may die. Each write that must survive lies between the two points of its name.

    The tests kill a process at every one of them, and fail on a write that lies between none.
    """

    BEFORE_STATE = auto()
    AFTER_STATE = auto()
    BEFORE_ASSET = auto()
    AFTER_ASSET = auto()
    BEFORE_RESERVATION = auto()
    AFTER_RESERVATION = auto()
    BEFORE_SIGNATURE = auto()
    AFTER_SIGNATURE = auto()
    BEFORE_PATIENTS = auto()
    AFTER_PATIENTS = auto()
    BEFORE_CANCELLATION = auto()
    AFTER_CANCELLATION = auto()
    BEFORE_SERIAL = auto()
    AFTER_SERIAL = auto()
    BEFORE_CHARGE = auto()
    AFTER_CHARGE = auto()
    BEFORE_LEDGER = auto()
    AFTER_LEDGER = auto()


Reach = Callable[[CrashPoint], None]


def carry_on(point: CrashPoint) -> None:
    """What a process does at a crash point unless a test kills it there."""
