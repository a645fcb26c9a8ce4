"""What a study on the built-in model has where its author says nothing: tuned on synthetic patients of other seeds."""

from collections.abc import Mapping
from typing import Any, Final

from ..model.base_folder import BUILTIN_MODEL

_NORM: Final = 0.3
# The rate, and the noise of a step beside the mean that it was tuned under: of 30 units of 120, at ε = 4.
_RATE: Final = 2.4
_NOISE: Final = 0.0287

# The projections that write what the upper half of the blocks found: few numbers, so that little noise is added, and
# gradients that point the same way for most patients. Those of the lower half, and of values, overshoot. Together they
# are one choice: a rate is of one scale, norm and optimiser.
TUNED: Final[Mapping[str, Mapping[str, Any]]] = {
    "model": {"target_modules": ("o_proj", "down_proj"), "layers": (15, 27), "rank": 1, "alpha": 64.0, "dora": False},
    "privacy": {"clipping_norm": _NORM},
    "training": {"optimizer": "sgd"},
}


def with_tuned(fields: Any) -> Any:
    """A study's tables, with ``TUNED`` where they are on the built-in model and state nothing that departs from it.

    A stated rate stands in place of ``tuned_rate``, and so does a clipping norm beside it. Where anything of ``TUNED``
    is stated to be otherwise, the general defaults are what is left out; what is stated as it was tuned changes
    nothing. For distributed trust alone: under local trust sites step by themselves, at rates of their own.

    >>> with_tuned({"training": {"rounds": 3}})["training"]
    {'optimizer': 'sgd', 'rounds': 3}
    >>> with_tuned({"model": {"rank": 8}})
    {'model': {'rank': 8}}
    """
    if not isinstance(fields, Mapping) or not is_tuned(fields):
        return fields
    return {**fields, **{name: {**tuned, **fields.get(name, {})} for name, tuned in TUNED.items()}}


def is_tuned(fields: Mapping[str, Any]) -> bool:
    """Whether a study of these tables, whole or with much left out, is trained as it was tuned.

    A rate is of one clipping norm: another norm alone departs from what was tuned, and beside a rate does not.

    >>> is_tuned({}), is_tuned({"privacy": {"clipping_norm": 0.97}})
    (True, False)
    >>> is_tuned({"privacy": {"clipping_norm": 0.97}, "training": {"learning_rate": 0.8}})
    True
    """
    tables = {name: fields.get(name, {}) for name in TUNED}
    if not all(isinstance(table, Mapping) for table in tables.values()):  # which is refused with the rest
        return False
    is_builtin = tables["model"].get("name", BUILTIN_MODEL) == BUILTIN_MODEL
    is_distributed = tables["privacy"].get("trust", "distributed") == "distributed"
    is_rated = tables["training"].get("learning_rate") is not None
    departs = any(
        field in tables[name] and not (is_rated and field == "clipping_norm") and _listed(tables[name][field]) != value
        for name, tuned in TUNED.items()
        for field, value in tuned.items()
    )
    return is_builtin and is_distributed and not departs


def tuned_rate(*, noise: float, clipping_norm: float = _NORM) -> float:
    """The rate of gradient descent, by a step's ``noise`` beside the mean that it is in: z / (q × units), 0 for none.

    Above what the rate was tuned under it goes as one over the noise. What is learnt grows with the rate, and the harm
    that noise does with its square: at the rate of a smaller noise a study can end worse than it began. Chosen on
    synthetic patients of other seeds (deploy/RESULTS.md). At another clipping norm a step is as long. Of two digits.

    >>> [tuned_rate(noise=noise) for noise in (0.0, 0.0287, 0.0574)], tuned_rate(noise=0.0, clipping_norm=0.6)
    ([2.4, 2.4, 1.2], 1.2)
    """
    return float(f"{_RATE * _NOISE / max(noise, _NOISE) * _NORM / clipping_norm:.2g}")


def _listed(value: Any) -> Any:
    """As ``TUNED`` has it, what TOML and JSON have as a list."""
    return tuple(value) if isinstance(value, list) else value
