"""The adapter that a folder holds is the one that was trained, and is used as it was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.study.verification import FILES, FROZEN, TRAINED, USED, found, reclosed, refused
from support.study.verified_study import SmallStudy

from grandrounds.common.study.artefacts import CONFIG, WEIGHTS
from grandrounds.deploy.verify.verdict import Status

Tensors = dict[str, np.ndarray[Any, Any]]


def negated(tensors: Tensors, part: str) -> Tensors:
    return {name: -tensor if part in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        (lambda tensors: negated(tensors, "lora_B"), [TRAINED]),
        (lambda tensors: negated(tensors, "lora_A"), [FROZEN]),
        (lambda tensors: {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, [TRAINED, FROZEN]),
        (lambda tensors: tensors | {"lm_head.weight": np.zeros(3, np.float32)}, [TRAINED, FROZEN]),
        (lambda tensors: dict(list(tensors.items())[1:]), [TRAINED, FROZEN]),
        (lambda tensors: {}, [TRAINED, FROZEN]),
        # The same numbers, cut or named otherwise, are another adapter.
        (lambda tensors: {name: tensor.reshape(2, -1) for name, tensor in tensors.items()}, [TRAINED, FROZEN]),
        (lambda tensors: {name.replace("v_proj", "q_proj"): t for name, t in tensors.items()}, [TRAINED, FROZEN]),
        # peft passes over names that it does not look for.
        (lambda tensors: {name.replace("layers.1", "layers.9"): t for name, t in tensors.items()}, [TRAINED, FROZEN]),
        (lambda tensors: {name.removeprefix("base_model."): t for name, t in tensors.items()}, [TRAINED, FROZEN]),
    ],
)
def test_another_adapter_is_refused_whoever_signs_it(
    study: SmallStudy, folder: Path, change: Callable[[Tensors], Tensors], claims: list[str]
) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    refused(folder, *claims, FILES)
    reclosed(study, folder)
    refused(folder, *claims)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": 32},
        {"use_rslora": True},
        {"r": 8},
        {"rank_pattern": {"v_proj": 8}},
        {"base_model_name_or_path": "another/model"},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": 0},
        {"revision": "another"},
        {"target_modules": "v_proj"},
        {"auto_mapping": {}},
    ],
)
def test_a_configuration_that_makes_something_else_of_the_adapter_is_refused(
    study: SmallStudy, folder: Path, change: dict[str, Any]
) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_bytes()) | change), encoding="utf-8")
    reclosed(study, folder)
    assert next(iter(change)) in refused(folder, USED)


def test_a_configuration_of_the_same_fields_in_another_form_is_refused(study: SmallStudy, folder: Path) -> None:
    text = (folder / CONFIG).read_text("utf-8")
    # A field that stands twice is the last of the two for one reader and the first for another.
    for other in (text.replace("{", '{"r": 64,', 1), text.rstrip(), json.dumps(json.loads(text))):
        (folder / CONFIG).write_text(other, encoding="utf-8")
        reclosed(study, folder)
        assert "another form" in refused(folder, USED)


def test_the_configuration_of_a_layer_that_is_kept_transposed_is_confirmed(study: SmallStudy, folder: Path) -> None:
    text = (folder / CONFIG).read_text("utf-8").replace('"fan_in_fan_out": false', '"fan_in_fan_out": true')
    (folder / CONFIG).write_text(text, encoding="utf-8")
    reclosed(study, folder)
    assert found(folder, USED).status is Status.AGREES


@pytest.mark.parametrize("text", ["[]", "{", '{"r": NaN}'])
def test_a_configuration_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text, encoding="utf-8")
    assert CONFIG in refused(folder, USED, FILES)


def test_what_is_no_file_of_tensors_is_refused(folder: Path) -> None:
    for content in (b"", b"\x80\x04.", (folder / WEIGHTS).read_bytes()[:-1]):
        (folder / WEIGHTS).write_bytes(content)
        assert "no file of safetensors" in refused(folder, TRAINED, FROZEN, FILES)
