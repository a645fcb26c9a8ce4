"""A base model's folder: its hash covers all that decides a gradient, and nothing that does not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.study.tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from grandrounds.common.crypto.identity import canonical_json, sha256
from grandrounds.common.errors import ModelError
from grandrounds.common.model.base_folder import MODEL_LABEL, model_folder, model_folder_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("whole"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(whole, tmp_path / "model")


def split(folder: Path) -> None:
    """Store the weights in several files with an index."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()


def test_the_hash_is_of_files_by_name_and_of_tensors_by_name_type_shape_and_bytes(tmp_path: Path) -> None:
    content = np.arange(6, dtype="<f4").tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "llama"}')
    stated = {
        "files": {"config.json": sha256(b'{"model_type": "llama"}')},
        "tensors": {"w": ["torch.float32", [2, 3], sha256(content)]},
    }
    assert model_folder_sha256(tmp_path) == sha256(MODEL_LABEL + canonical_json(stated))


def test_a_copy_elsewhere_has_the_same_hash_however_its_weights_are_split(whole: Path, folder: Path) -> None:
    known = model_folder_sha256(whole)
    assert model_folder_sha256(folder) == known
    split(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert model_folder_sha256(folder) == known


def test_any_changed_number_changes_the_hash(whole: Path, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nextafter(weights["model.norm.weight"][3], torch.tensor(2.0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_folder_sha256(folder) != model_folder_sha256(whole)


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_any_changed_or_missing_file_of_configuration_changes_the_hash(whole: Path, folder: Path, file: str) -> None:
    changed = folder / file
    changed.write_bytes(changed.read_bytes() + b"\n")
    hashes = {model_folder_sha256(whole), model_folder_sha256(folder)}
    assert len(hashes) == 2
    if file != "config.json":
        changed.unlink()
        assert model_folder_sha256(folder) not in hashes


@pytest.mark.parametrize(
    "file",
    [
        "added_tokens.json",
        "special_tokens_map.json",
        "merges.txt",
        "tokenizer.model",
        "bpe.codes",
        "source.spm",
        "additional_chat_templates/tools.jinja",
    ],
)
def test_a_file_that_a_tokenizer_would_read_changes_the_hash(whole: Path, folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}", encoding="utf-8")
    assert model_folder_sha256(folder) != model_folder_sha256(whole)


def test_what_transformers_does_not_read_leaves_the_hash_alone(whole: Path, folder: Path) -> None:
    for file in ("README.md", ".gitattributes", "pytorch_model.bin", "onnx/config.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}", encoding="utf-8")
    assert model_folder_sha256(folder) == model_folder_sha256(whole)


def test_the_weights_that_are_hashed_are_those_that_transformers_loads(whole: Path, folder: Path) -> None:
    before = load_file(whole / "model.safetensors")
    split(folder)
    other = {name: tensor + 1 for name, tensor in before.items()}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert torch.equal(loaded["model.norm.weight"], other["model.norm.weight"])
    assert model_folder_sha256(folder) != model_folder_sha256(whole)


def test_weights_that_would_be_read_from_other_files_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.raises(ModelError, match="names other weights"):
        model_folder_sha256(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter of its own"):
        model_folder_sha256(folder)


def test_an_index_that_points_outside_its_folder_or_names_a_tensor_twice_is_refused(folder: Path) -> None:
    split(folder)
    index = folder / "model.safetensors.index.json"
    written = index.read_text(encoding="utf-8")
    first = sorted(folder.glob("*.safetensors"))[0]
    shutil.copy(first, folder.parent / first.name)
    index.write_text(written.replace(first.name, f"../{first.name}"), encoding="utf-8")
    with pytest.raises(ModelError):
        model_folder_sha256(folder)
    shutil.copy(first, folder / "again.safetensors")
    table = json.loads(written)
    table["weight_map"]["again"] = "again.safetensors"
    index.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ModelError):
        model_folder_sha256(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_folder_without_a_readable_configuration_or_safetensors_is_refused(
    folder: Path, file: str, content: bytes | None
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"weights of another format")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match="no readable"):
        model_folder_sha256(folder)


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ModelError):
        model_folder("neither/a/folder")
