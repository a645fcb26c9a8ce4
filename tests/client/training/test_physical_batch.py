"""How a machine computes is its own matter, follows from no record, and changes no gradient beyond rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.study.tiny_models import TARGETS, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training import physical_batch
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.physical_batch import MachineSampler
from grandrounds.common.data.buckets import bucket_lengths
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


def study(*, nominal_units: int = 20, max_tokens: int = 48, **training: Any) -> Study:
    sites = [{"name": site, "nominal_units": nominal_units} for site in ("north", "south", "west")]
    fields = {
        "model": {"target_modules": TARGETS["llama"]},
        "data": {"max_tokens": max_tokens},
        "privacy": {"sampling_probability": 0.5},
    }
    return validated(Study, {**fields, "training": training, "sites": sites})


def test_batches_are_smaller_where_few_are_drawn_and_hold_about_as_many_tokens_whatever_their_length(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(physical_batch._ENOUGH_TOKENS, "cpu", 160)
    model = load_tiny(folder)
    lengths = bucket_lengths(48)
    assert MachineSampler(study(), model).shapes == tuple(Shape(tokens, 1) for tokens in lengths)
    many = MachineSampler(study(nominal_units=10_000), model)
    assert many.shapes == (Shape(16, 10), Shape(24, 6), Shape(32, 5), Shape(40, 4), Shape(48, 3))
    assert MachineSampler(study(physical_batch=2), model).shapes == tuple(Shape(tokens, 2) for tokens in lengths)


def test_what_was_chosen_and_why_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, *said = MachineSampler(study(), load_tiny(folder)).told
    assert where.startswith(f"the base model is held in float32 on cpu; kernels are those of torch {torch.__version__}")
    assert where.endswith("attention is sdpa")
    assert said == [
        "activations are kept for the backward pass (checkpointing: auto)",
        "records are padded to the next of 16, 24, 32, 40, 48 tokens, and computed 1 at a time: a step of the study "
        "draws about 10, and few rows of a last batch shall stay empty",
        "random sequences' gradients were the same bits among others and alone, in every shape",
    ]
    model = load_tiny(folder)
    logits = LanguageModel.logits

    def leaks(self: LanguageModel, token_ids: torch.Tensor) -> torch.Tensor:
        return logits(self, token_ids) * (1 + 1e-6 * token_ids.float().std() * (token_ids.shape[1] == 40))

    monkeypatch.setattr(LanguageModel, "logits", leaks)
    found = MachineSampler(study(physical_batch=2), model)
    assert found.shapes == (Shape(16, 2), Shape(24, 2), Shape(32, 2), Shape(40, 1), Shape(48, 2))
    assert found.told[-1] == "one at a time, since others change a record's bits here: records of 40"


@pytest.mark.parametrize(("setting", "free", "expected"), [("auto", 1 << 40, False), ("auto", 1 << 10, True)])
def test_activations_are_computed_again_where_memory_is_short(
    folder: Path, setting: Any, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(physical_batch, "free_bytes", lambda device: free)
    said = MachineSampler(study(), load_tiny(folder), checkpointing=setting).told[1]
    assert ("computed again" in said) == expected


def test_a_site_may_choose_and_its_gradients_are_the_same(folder: Path) -> None:
    example = tiny_example(np.random.default_rng(1), length=30, max_tokens=48)
    found = {}
    for setting in ("on", "off"):
        sampler = MachineSampler(study(), load_tiny(folder), checkpointing=setting)
        assert ("computed again" in sampler.told[1]) == (setting == "on")
        found[setting] = sampler.gradients([example])
    assert torch.equal(found["on"], found["off"])


def test_what_a_forward_pass_keeps_grows_with_its_tokens_and_is_less_when_computed_again(folder: Path) -> None:
    model = load_tiny(folder)
    GradSampler(model, [Shape(48, 1)])
    kept = physical_batch._activation_bytes(model, 48)
    assert 1.8 * physical_batch._activation_bytes(model, 24) < kept < 3 * physical_batch._activation_bytes(model, 24)
    model.enable_gradient_checkpointing()
    assert physical_batch._activation_bytes(model, 48) < 0.7 * kept
