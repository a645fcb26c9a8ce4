"""The adapter as a file of safetensors, of which nobody has to trust a byte."""

import hashlib
from collections.abc import Mapping

import numpy as np

from ..errors import ModelError
from .adapter import AdapterLayout, Vector, vector_view

_ALWAYS = (".lora_B.weight", ".lora_embedding_B", ".lora_magnitude_vector")
_TRAINED = {"ffa": _ALWAYS, "lora": (".lora_A.weight", ".lora_embedding_A", *_ALWAYS)}


def read_tensors(data: bytes) -> dict[str, Vector]:
    """All tensors of an adapter's file, by their names. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unfit("is no file of safetensors") from error
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise _unfit("has numbers that are not float32")
    return tensors


def vector_of(tensors: Mapping[str, Vector], *, kind: str, trained: bool) -> Vector:
    """The tensors that a study of this ``kind`` of adapter trained, or those that it did not, as one vector [d]."""
    chosen = _chosen(tensors, kind=kind, trained=trained)
    return AdapterLayout.of({name: tensor.shape for name, tensor in chosen.items()}).flatten(chosen)


def trained_sha256(data: bytes | bytearray | memoryview, *, kind: str) -> str:
    """``vector_sha256`` of the numbers that a study trained, from its adapter's file. Raises ModelError."""
    digest = hashlib.sha256()
    for _, tensor in sorted(_chosen(read_tensors(bytes(data)), kind=kind, trained=True).items()):
        digest.update(vector_view(tensor.reshape(-1)))
    return digest.hexdigest()


def _chosen(tensors: Mapping[str, Vector], *, kind: str, trained: bool) -> dict[str, Vector]:
    return {name: tensor for name, tensor in tensors.items() if name.endswith(_TRAINED[kind]) == trained}


def _unfit(what: str) -> ModelError:
    return ModelError(
        f"the adapter's file {what}",
        why="it could not be compared with what the sums made",
        fix="have the server's operator show all sites the study's folder",
    )
