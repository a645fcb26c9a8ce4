"""Grand Rounds: hospitals fine-tune one language model together, with patient-level privacy that can be recomputed."""

from typing import TYPE_CHECKING, Any

from .common.version import __version__

if TYPE_CHECKING:
    from .deploy.simulation.simulate import Result, simulate

__all__ = ["Result", "__version__", "simulate"]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: it brings torch and Flower, which `grandrounds --help` does not need.
    if name in ("Result", "simulate"):
        from .deploy.simulation import simulate as simulation

        return getattr(simulation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
