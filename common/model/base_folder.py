"""The folder of a base model: where it lies, and the hash of it that the manifest fixes."""

import json
import re
from pathlib import Path

from ..crypto.identity import canonical_json, sha256
from ..errors import ModelError, reason

BUILTIN_MODEL = "builtin"
# Where the built-in model is published; its weights here are the 4-bit ones, computed with in float32.
BUILTIN_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

BUILTIN_LICENSE = "apache-2.0"

MODEL_LABEL = b"grandrounds/model/v1\n"
# What transformers makes of a folder beside its weights: architecture, tokenizer, chat template, generation.
_CONFIGURATION = ["*.json", "*.txt", "*.model", "*.jinja", "*.codes", "*.spm", "*.tiktoken", "*.tokenizer"]
# The front matter of a model's card, and what it says of the license: "other" where it has a name of its own.
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(
    r"^(license_name|license):[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+_-]{0,98})[\"']?[ \t]*\r?$", re.MULTILINE
)
_CHAT_TEMPLATES = "additional_chat_templates"
_WHY = "the study fine-tunes it, and every site must hold the same model"


def model_folder(name: str) -> Path:
    """The folder of a model: ``name`` itself, or where the hub's model of that name was downloaded to.

    Only configuration, tokenizer and safetensors are fetched. Raises ModelError.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_CONFIGURATION, "*.safetensors"]))
    except Exception as error:  # the client raises errors of many libraries: its own, HTTP's, the operating system's
        raise ModelError(
            f"{name} is neither a folder nor a model that can be fetched from the hub",
            why=_WHY,
            fix="check the spelling, or download the model where there is a network and give its folder",
        ) from error


def model_folder_sha256(folder: Path) -> str:
    """SHA-256 over everything in a base model's folder that decides what a record's gradient is, in lower-case hex.

    That is: name, type, shape and bytes of every tensor, the same however they are split into files; and name and bytes
    of every file of configuration, tokenizer and chat template. It assumes that these name nothing outside the folder,
    and that sites run one version of transformers: the hash covers what it reads, not what it does. Reads one tensor at
    a time. Raises ModelError when the folder holds no safetensors, or points at other weights.
    """
    try:
        _check_weights_are_the_folder_s(folder)
        contents = {"files": _file_hashes(folder), "tensors": _tensor_hashes(folder)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder} holds no readable config.json and model.safetensors ({reason(error)})",
            why=_WHY,
            fix="save the model as safetensors; other formats can run code when they are read",
        ) from error
    return sha256(MODEL_LABEL + canonical_json(contents))


def _check_weights_are_the_folder_s(folder: Path) -> None:
    """Refuse what would make transformers read weights from other files than those that are hashed."""
    elsewhere = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    if elsewhere is not None or (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} brings an adapter of its own, or its config.json names other weights (transformers_weights)",
            why=_WHY,
            fix="merge the adapter into the model, and save the whole with save_pretrained into a new folder",
        )


def configuration_sha256(folder: Path) -> str:
    """SHA-256 over what is neither weights nor their index, by which a record becomes tokens. Raises ModelError."""
    try:
        return sha256(canonical_json(_file_hashes(folder)))
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be read ({reason(error)})", why=_WHY, fix="check the folder and who may read it"
        ) from error


def vocabulary_size_of(folder: Path) -> int | None:
    """How many tokens the model in a folder says that it has; None where its configuration does not say."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    except (OSError, ValueError, AttributeError):  # which is told when the model is loaded
        return None
    return size if isinstance(size, int) else None


def _file_hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of configuration; how tensors are split into files decides nothing."""
    return {path: sha256((folder / path).read_bytes()) for path in configuration_files(folder)}


def configuration_files(folder: Path) -> list[str]:
    """The paths in a model's folder of what is neither weights nor their index: configuration, tokenizer, templates."""
    files = {file for pattern in _CONFIGURATION for file in folder.glob(pattern)}
    files |= set((folder / _CHAT_TEMPLATES).glob("*.jinja"))
    return [
        file.relative_to(folder).as_posix()
        for file in files
        if file.is_file() and not file.name.endswith(".index.json")
    ]


def _tensor_hashes(folder: Path) -> dict[str, list[object]]:
    """Type, shape and hash of the bytes of every tensor."""
    import torch
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, list[object]] = {}
    try:
        for file in _weight_files(folder):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dictionary)
                    if name in tensors:
                        raise ValueError(f"{name} occurs twice")
                    tensor = stored.get_tensor(name)
                    content = tensor.reshape(-1).view(torch.uint8).numpy()
                    tensors[name] = [str(tensor.dtype), list(tensor.shape), sha256(content.data)]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from: one, or if there is not, those that an index names."""
    whole = folder / "model.safetensors"
    if whole.exists():
        return [whole]
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if any(Path(file).name != file for file in files):
        raise ValueError("an index names a file outside its folder")
    return [folder / file for file in files]


def published_name(name: str) -> str:
    """What others find the model under."""
    return BUILTIN_HUB_NAME if name == BUILTIN_MODEL else name


def stated_license(name: str) -> str | None:
    """The license of a model, built in or in a folder, as its card's front matter states it; None where it does not."""
    if name == BUILTIN_MODEL:
        return BUILTIN_LICENSE
    try:
        with (Path(name) / "README.md").open(encoding="utf-8", errors="replace") as card:
            front = _FRONT_MATTER.match(card.read(1 << 16))
    except OSError:
        return None
    stated = dict(_LICENSE.findall(front[1])) if front else {}
    return stated.get("license_name", stated.get("license"))
