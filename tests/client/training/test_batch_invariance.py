import numpy as np
import pytest
import torch
from support.study.made_tensors import MadeTensors
from support.study.tiny_models import ARCHITECTURES, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training.batch_invariance import _bits_of_some, independent_shapes
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.errors import ModelError
from grandrounds.common.privacy.mechanism import Lattice, NoNoise


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in (*ARCHITECTURES, "opt")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_independent_records_share_a_batch_and_the_adapter_is_restored(folders, architecture):
    model = load_tiny(folders[architecture], architecture)
    before = model.get_adapter()
    assert independent_shapes(model, [Shape(24, 8)]) == (Shape(24, 8),)
    np.testing.assert_array_equal(model.get_adapter(), before)


def neighbours_leak(token_ids, logits):
    return logits * (1 + 1e-6 * token_ids.float().std())


def position_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * torch.arange(len(logits)))[:, None, None]


def padding_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * (token_ids[:, -1] == 0).any())


def position_of_padded_ones_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * torch.arange(len(logits)) * (token_ids[:, -1] == 0))[:, None, None]


def being_alone_leaks(token_ids, logits):
    return logits * (1 + 1e-6 * (token_ids[1:] == 0).all())


LEAKS = [neighbours_leak, position_leaks, padding_leaks, position_of_padded_ones_leaks, being_alone_leaks]


@pytest.mark.parametrize("leak", LEAKS)
def test_records_that_touch_one_another_get_a_batch_each(folders, leak):
    model = load_tiny(folders["llama"])
    logits = model.logits
    model.logits = lambda token_ids: leak(token_ids, logits(token_ids))  # type: ignore[method-assign]
    assert independent_shapes(model, [Shape(24, 4)]) == (Shape(24, 1),)


def test_a_model_that_cannot_tell_records_apart_is_refused_at_once(folders):
    with pytest.raises(ModelError):
        independent_shapes(load_tiny(folders["opt"], "opt"), [Shape(24, 4)])


def test_gradients_that_are_always_zero_prove_nothing(folders):
    model = load_tiny(folders["llama"])
    logits = model.logits
    model.logits = lambda token_ids: 0.0 * logits(token_ids)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="zero throughout"):
        independent_shapes(model, [Shape(24, 4)])


class Remembers:
    """The mean of all that was read moves slowly, as a running statistic that evaluation mode leaves on."""

    def __init__(self):
        self.mean = 128.0

    def __call__(self, hidden):
        self.mean = 0.9 * self.mean + 0.1 * float(hidden.detach().mean())
        return hidden * (1 + 1e-3 * self.mean)


class RemembersTheLast:
    """What one computation leaves behind goes into the next one alone."""

    def __init__(self):
        self.last = 0.0

    def __call__(self, hidden):
        before, self.last = self.last, float(hidden.detach().std())
        return hidden * (1 + 1e-3 * before)


class Counts:
    """Each computation differs from the one before, whatever is read."""

    def __init__(self):
        self.calls = 0

    def __call__(self, hidden):
        self.calls += 1
        return hidden * (1 + 1e-5 * self.calls)


class Draws:
    """Dropout that is on in evaluation mode, as a function called without ``training``."""

    def __call__(self, hidden):
        return torch.nn.functional.dropout(hidden, 0.1)


SURVIVORS = [Remembers, RemembersTheLast, Counts, Draws]


def load_surviving(folder, survivor):
    """A model one of whose layers keeps state or draws at random, also in evaluation mode."""
    model, change = load_tiny(folder), survivor()
    layer = next(module for name, module in model.module.named_modules() if name.endswith("layers.0"))
    layer.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    return model


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("survivor", SURVIVORS)
def test_a_model_that_remembers_or_draws_in_evaluation_mode_is_refused(folders, survivor, batch_size):
    model = load_surviving(folders["llama"], survivor)
    before = model.get_adapter()
    with pytest.raises(ModelError, match="one at a time"):
        independent_shapes(model, [Shape(24, batch_size)])
    np.testing.assert_array_equal(model.get_adapter(), before)


class Grows:
    """As rotary positions that are scaled by the longest sequence so far, until a short one takes that back."""

    def __init__(self):
        self.longest = 0

    def __call__(self, hidden):
        tokens = hidden.shape[1]
        self.longest = 0 if tokens < 12 else max(self.longest, tokens)
        return hidden * (1 + 1e-3 * self.longest)


def test_a_model_that_keeps_how_long_a_sequence_of_another_shape_was_is_refused(folders):
    shapes = [Shape(8, 2), Shape(16, 2), Shape(24, 2)]
    for few in (shapes[:2], shapes[2:]):
        assert independent_shapes(load_surviving(folders["llama"], Grows), few) == tuple(few)
    with pytest.raises(ModelError, match="after longer sequences"):
        independent_shapes(load_surviving(folders["llama"], Grows), shapes)


class FollowsLonger:
    """Whether the sequence before was longer, and nothing else, decides."""

    def __init__(self):
        self.before = 0

    def __call__(self, hidden):
        follows_longer, self.before = hidden.shape[1] < self.before, hidden.shape[1]
        return hidden * (1 + 1e-3 * follows_longer)


class RangeOfALength:
    """Kept for each length by itself: between what all that was read lies, which reading one's own again leaves."""

    def __init__(self):
        self.ranges = {}

    def __call__(self, hidden):
        read = float(hidden.detach().std())
        low, high = self.ranges.get(hidden.shape[1], (read, read))
        low, high = self.ranges[hidden.shape[1]] = min(low, read), max(high, read)
        return hidden * (1 + high - low)


@pytest.mark.parametrize(("entry", "found"), [(0.0, 0), (-2.0, 3), (torch.nan, 0), (-torch.inf, 0)])
def test_gradients_are_looked_at_without_a_copy_of_them(entry, found):
    gradients = torch.zeros(3, 7)
    gradients[1, 4] = entry
    with MadeTensors() as made:
        assert len(_bits_of_some(gradients)) == found
    assert all(tensor.numel() < gradients.numel() for tensor in made.tensors)


@pytest.mark.parametrize("survivor", [FollowsLonger, RangeOfALength])
def test_what_one_length_leaves_to_another_and_what_it_leaves_to_itself_are_both_found(folders, survivor):
    shapes = [Shape(8, 1), Shape(16, 1), Shape(24, 1), Shape(32, 1)]
    with pytest.raises(ModelError, match="after longer sequences"):
        independent_shapes(load_surviving(folders["llama"], survivor), shapes)


class Alternates:
    """Every other computation reads its sequence with the sign turned."""

    def __init__(self):
        self.sign = 1.0

    def __call__(self, hidden):
        self.sign = -self.sign
        return self.sign * hidden


def test_without_the_test_one_unit_would_move_the_sum_by_more_than_the_sensitivity(folders):
    model = load_surviving(folders["llama"], Alternates)
    dp = DpSgd(
        sampler=GradSampler(model, [Shape(24, 1)]),
        lattice=Lattice(dimension=model.layout.dimension, clipping_norm=0.01),
        mechanism=NoNoise(),
    )
    rng = np.random.default_rng(1)
    one, *others = [
        [tiny_example(rng, length=24, max_tokens=24)] for _ in range(8)
    ]  # an even number: the next begins as this did
    with_it = dp.sum_units([one, *others])
    without = dp.sum_units(others)
    assert np.linalg.norm(with_it - without) > 1.3 * dp.lattice.sensitivity
