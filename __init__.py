"""Grand Rounds: hospitals fine-tune one language model together, with patient-level privacy that can be recomputed.

What most programs need is here: a ``Study`` says what is to be run, ``simulate`` runs it and gives a ``Result``,
``verify`` recomputes from its folder what it claims, and ``epsilon`` says what a schedule costs, without a study. What
is refused raises a ``GrandRoundsError``. Importing the package loads none of the libraries that these need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .common.version import __version__

if TYPE_CHECKING:
    from .common.errors import GrandRoundsError
    from .common.privacy.accountant import Epsilon
    from .common.study.study import Study
    from .deploy.plan.epsilon import epsilon
    from .deploy.simulation.outages import Dropout
    from .deploy.simulation.simulate import Result, simulate
    from .deploy.verify.claims import verify
    from .deploy.verify.verdict import Finding, Outcome, Status, Verdict

__all__ = [
    "Dropout",
    "Epsilon",
    "Finding",
    "GrandRoundsError",
    "Outcome",
    "Result",
    "Status",
    "Study",
    "Verdict",
    "__version__",
    "epsilon",
    "simulate",
    "verify",
]

_PLACES: Final = {
    ".common.errors": ("GrandRoundsError",),
    ".common.privacy.accountant": ("Epsilon",),
    ".common.study.study": ("Study",),
    ".deploy.plan.epsilon": ("epsilon",),
    ".deploy.simulation.outages": ("Dropout",),
    ".deploy.simulation.simulate": ("Result", "simulate"),
    ".deploy.verify.claims": ("verify",),
    ".deploy.verify.verdict": ("Finding", "Outcome", "Status", "Verdict"),
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: together they bring torch and Flower, which `grandrounds --help` does not need.
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(place, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
