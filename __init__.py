"""Grand Rounds: hospitals fine-tune one language model together, with patient-level privacy that can be recomputed."""

__version__ = "0.1.0"

__all__ = ["__version__"]
