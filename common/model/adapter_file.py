"""The adapter as a file of safetensors, of which nobody has to trust a byte."""

import numpy as np

from ..errors import ModelError
from .adapter import AdapterLayout, Vector

_TRAINED = {"ffa": (".lora_B.weight",), "lora": (".lora_A.weight", ".lora_B.weight")}


def trained_vector(data: bytes, *, kind: str) -> Vector:
    """The numbers that a study trained, as one vector [d], from its adapter's file. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unfit("is no file of safetensors") from error
    chosen = {name: tensor for name, tensor in tensors.items() if name.endswith(_TRAINED[kind])}
    if any(tensor.dtype != np.float32 for tensor in chosen.values()):
        raise _unfit("has numbers that are not float32")
    return AdapterLayout.of({name: tensor.shape for name, tensor in chosen.items()}).flatten(chosen)


def _unfit(what: str) -> ModelError:
    return ModelError(
        f"the adapter's file {what}",
        why="it could not be compared with what the sums made",
        fix="have the server's operator show all sites the study's folder",
    )
