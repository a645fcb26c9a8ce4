"""The folder of a base model: where it lies, and the hash of its weights that the manifest fixes."""

import hashlib
import json
from pathlib import Path

from .errors import ModelError

_FETCHED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
_WHY = "the study fine-tunes it, and every site must hold the same weights"


def model_folder(name: str) -> Path:
    """The folder of a model: ``name`` itself, or where the hub's model of that name was downloaded to.

    Only configuration, tokenizer and safetensors are fetched. Raises ModelError.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except Exception as error:  # the client raises errors of many libraries: its own, HTTP's, the operating system's
        raise ModelError(
            f"{name} is neither a folder nor a model that can be fetched from the hub ({type(error).__name__})",
            why=_WHY,
            fix="check the spelling, or download the model where there is a network and give its folder",
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, in lower-case hex.

    The same however the tensors are split into files. Reads one tensor at a time. Raises ModelError when the folder
    holds no safetensors.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, list[object]] = {}
    try:
        for file in _weight_files(folder):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dictionary)
                    tensor = stored.get_tensor(name)
                    content = tensor.reshape(-1).view(torch.uint8).numpy()
                    digest = hashlib.sha256(content.data).hexdigest()
                    tensors[name] = [str(tensor.dtype), list(tensor.shape), digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no readable model.safetensors ({type(error).__name__})",
            why=_WHY,
            fix="save the model as safetensors; other formats can run code when they are read",
        ) from error
    return hashlib.sha256(json.dumps(tensors, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from: one, or those that an index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [folder / Path(file).name for file in sorted(files)]
