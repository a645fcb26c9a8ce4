import numpy as np
import pytest
import torch
from support.study.tiny_models import ARCHITECTURES, load_tiny, save_tiny_model

from grandrounds.client.training.batch_invariance import independent_batch_size
from grandrounds.common.errors import ModelError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in (*ARCHITECTURES, "opt")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_independent_records_share_a_batch_and_the_adapter_is_restored(folders, architecture):
    model = load_tiny(folders[architecture], architecture)
    before = model.get_adapter()
    assert independent_batch_size(model, batch_size=8, max_tokens=24) == 8
    np.testing.assert_array_equal(model.get_adapter(), before)


def neighbours_leak(token_ids, logits):
    return logits * (1 + 1e-6 * token_ids.float().std())


def position_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * torch.arange(len(logits)))[:, None, None]


def padding_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * (token_ids[:, -1] == 0).any())


@pytest.mark.parametrize("leak", [neighbours_leak, position_leaks, padding_leaks])
def test_records_that_touch_one_another_get_a_batch_each(folders, leak):
    model = load_tiny(folders["llama"])
    logits = model.logits
    model.logits = lambda token_ids: leak(token_ids, logits(token_ids))  # type: ignore[method-assign]
    assert independent_batch_size(model, batch_size=4, max_tokens=24) == 1


def test_a_model_that_cannot_tell_records_apart_is_refused_at_once(folders):
    with pytest.raises(ModelError):
        independent_batch_size(load_tiny(folders["opt"], "opt"), batch_size=4, max_tokens=24)


def test_gradients_that_are_always_zero_prove_nothing(folders):
    model = load_tiny(folders["llama"])
    logits = model.logits
    model.logits = lambda token_ids: 0.0 * logits(token_ids)  # type: ignore[method-assign]
    assert independent_batch_size(model, batch_size=4, max_tokens=24) == 1
