"""What a study on the built-in model has where its author says nothing: tuned on synthetic patients of other seeds."""

from collections.abc import Mapping
from typing import Any, Final

from ..model.base_folder import BUILTIN_MODEL

# The projections that write what the upper half of the blocks found: few numbers, so that little noise is added, and
# gradients that point the same way for most patients. Those of the lower half, and of values, overshoot. Together they
# are one choice: a rate is of one scale, norm and optimiser.
TUNED: Final[Mapping[str, Mapping[str, Any]]] = {
    "model": {"target_modules": ("o_proj", "down_proj"), "layers": (15, 27), "rank": 1, "alpha": 64.0, "dora": False},
    "privacy": {"clipping_norm": 0.3},
    "training": {"optimizer": "sgd", "learning_rate": 2.4},
}

# What chooses by itself how far a step goes. A norm alone does not: the tuned rate is of the tuned norm.
_REFINED: Final = frozenset(("learning_rate", "clipping_norm"))


def with_tuned(fields: Any) -> Any:
    """A study's tables, with ``TUNED`` where they are on the built-in model and state nothing that departs from it.

    A stated rate stands in place of the tuned one, and so does a clipping norm beside it. Where anything else of
    ``TUNED`` is stated to be otherwise, the general defaults are what is left out; what is stated as it was tuned
    changes nothing. For distributed trust alone: under local trust sites step by themselves, at rates of their own.

    >>> with_tuned({"training": {"rounds": 3}})["training"]
    {'optimizer': 'sgd', 'learning_rate': 2.4, 'rounds': 3}
    >>> with_tuned({"training": {"learning_rate": 1.2}})["training"]
    {'optimizer': 'sgd', 'learning_rate': 1.2}
    >>> with_tuned({"training": {"learning_rate": 1.2, "optimizer": "sgd"}})["training"]
    {'optimizer': 'sgd', 'learning_rate': 1.2}
    >>> with_tuned({"model": {"rank": 8}})
    {'model': {'rank': 8}}
    """
    if not isinstance(fields, Mapping):
        return fields
    tables = {name: fields.get(name, {}) for name in TUNED}
    if not all(isinstance(table, Mapping) for table in tables.values()):  # which is refused with the rest
        return fields
    is_builtin = tables["model"].get("name", BUILTIN_MODEL) == BUILTIN_MODEL
    is_distributed = tables["privacy"].get("trust", "distributed") == "distributed"
    refined = _REFINED if "learning_rate" in tables["training"] else frozenset()
    departs = any(
        field in tables[name] and field not in refined and _listed(tables[name][field]) != value
        for name, tuned in TUNED.items()
        for field, value in tuned.items()
    )
    if not is_builtin or not is_distributed or departs:
        return fields
    return {**fields, **{name: {**tuned, **tables[name]} for name, tuned in TUNED.items()}}


def _listed(value: Any) -> Any:
    """As ``TUNED`` has it, what TOML and JSON have as a list."""
    return tuple(value) if isinstance(value, list) else value
