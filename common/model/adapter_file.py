"""The adapter as a file of safetensors, of which nobody has to trust a byte."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from ..errors import ModelError
from .adapter import AdapterLayout, Vector, vector_view

_ALWAYS: Final = (".lora_B.weight", ".lora_embedding_B", ".lora_magnitude_vector")
CORE_TENSOR: Final = ".lora_A.core.weight"
_TRAINED: Final = {"ffa": _ALWAYS, "lora": (".lora_A.weight", ".lora_embedding_A", *_ALWAYS), "core": (CORE_TENSOR,)}


def write_tensors(path: Path, tensors: Mapping[str, Vector]) -> None:
    """A file of safetensors, for everybody: the library, which copies nothing, makes it its owner's alone."""
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)


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


def folded(tensors: Mapping[str, Vector]) -> dict[str, Vector]:
    """A core adapter as everybody's LoRA: each B [out, r] times its core [r, r], the same bits on every machine.

    The products are float64 and added in the order of the core's rows; what comes of it is float32. Raises ModelError
    where a core has no B that fits.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(CORE_TENSOR)}
    for name in tensors.keys() - found.keys():
        core, b = tensors[name], f"{name.removesuffix(CORE_TENSOR)}.lora_B.weight"
        if b not in found or found[b].ndim != 2 or core.shape != 2 * found[b].shape[1:]:
            raise _unfit("has a core without a B that fits")
        product = np.zeros(found[b].shape)
        for column, row in zip(found[b].T.astype(np.float64), core.astype(np.float64), strict=True):
            product += column[:, None] * row
        found[b] = product.astype(np.float32)
    return found


def is_folded(weights: bytes, core: bytes) -> bool:
    """Whether a LoRA's file is what follows from that of a core adapter, to the last bit. Raises ModelError."""
    found, expected = read_tensors(weights), folded(read_tensors(core))
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


def _chosen(tensors: Mapping[str, Vector], *, kind: str, trained: bool) -> dict[str, Vector]:
    return {name: tensor for name, tensor in tensors.items() if name.endswith(_TRAINED[kind]) == trained}


def _unfit(what: str) -> ModelError:
    return ModelError(
        f"the adapter's file {what}",
        why="what is loaded, or compared with a study's sums, has to be the adapter, whole",
        fix="get its folder anew, whole, from whoever has the study's",
    )
