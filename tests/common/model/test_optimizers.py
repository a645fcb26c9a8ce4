"""Optimisers: the textbook's steps, and the same steps after a restart."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grandrounds.common.model.optimizers import ADAM_EPSILON, Adam, KnownNoise, make_optimizer

NAMES = ("sgd", "momentum", "adam", "disk")
OPTIONS: dict[str, Any] = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "gain": 0.4}
STEPS, SIZE = 12, 6
# Subnormal squares are where two orders of the same operations may differ.
NUMBERS = st.floats(-10, 10).filter(lambda number: number == 0 or abs(number) > 1e-100)
GRADIENTS = arrays(np.float64, (STEPS, SIZE), elements=NUMBERS)
ORACLES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.8),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, betas=(0.8, 0.95), eps=ADAM_EPSILON),
}


def steps(optimizer, parameters, gradients):
    for gradient in gradients:
        parameters = optimizer.step(parameters, gradient)
    return parameters


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=50, deadline=None)
@given(gradients=GRADIENTS)
def test_the_steps_are_torch_s(name, gradients):
    start = np.linspace(-1, 1, SIZE)
    parameter = torch.tensor(start, requires_grad=True)
    oracle = ORACLES[name]([parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        oracle.step()
    ours = steps(make_optimizer(name, **OPTIONS), start, gradients)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(gradients=GRADIENTS, cut=st.integers(0, STEPS))
def test_steps_resumed_from_a_state_equal_uninterrupted_ones_to_the_last_bit(name, gradients, cut):
    start = np.linspace(-1, 1, SIZE)
    uninterrupted = steps(make_optimizer(name, **OPTIONS), start, gradients)
    before, after = make_optimizer(name, **OPTIONS), make_optimizer(name, **OPTIONS)
    middle = steps(before, start, gradients[:cut])
    state = before.state
    after.restore(state)
    steps(before, middle, gradients[cut:])  # what became of the optimiser since does not reach the state
    np.testing.assert_array_equal(steps(after, middle, gradients[cut:]), uninterrupted)
    assert {key: value.tolist() for key, value in before.state.items()} == {
        key: value.tolist() for key, value in after.state.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_its_arguments_and_the_given_state_alone(name):
    optimizer, parameters, gradient = make_optimizer(name, **OPTIONS), np.ones(3), np.full(3, 2.0)
    optimizer.step(parameters, gradient)
    state = optimizer.state
    optimizer.step(parameters, gradient)
    kept = {key: value.copy() for key, value in state.items()}
    optimizer.restore(state)
    optimizer.step(parameters, gradient)
    assert parameters.tolist() == [1.0] * 3
    assert gradient.tolist() == [2.0] * 3
    assert all(np.array_equal(state[key], kept[key]) for key in kept)


@pytest.mark.parametrize("name", ["momentum", "adam", "disk"])
def test_an_empty_state_begins_anew(name):
    optimizer = make_optimizer(name, **OPTIONS)
    first = optimizer.step(np.zeros(3), np.ones(3))
    optimizer.restore({})
    assert optimizer.state == {}
    np.testing.assert_array_equal(optimizer.step(np.zeros(3), np.ones(3)), first)


@pytest.mark.parametrize("name", ["momentum", "adam", "disk"])
def test_a_state_that_is_forgotten_would_show(name):
    resumed, fresh = make_optimizer(name, **OPTIONS), make_optimizer(name, **OPTIONS)
    resumed.step(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    gradient = np.array([3.0, -1.0, 2.0])
    assert not np.array_equal(resumed.step(np.zeros(3), gradient), fresh.step(np.zeros(3), gradient))


@pytest.mark.parametrize("name", ["momentum", "adam", "disk"])
def test_whoever_holds_a_state_cannot_change_the_optimizer_by_it(name):
    optimizer, untouched = make_optimizer(name, **OPTIONS), make_optimizer(name, **OPTIONS)
    for each in (optimizer, untouched):
        each.step(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    for array in optimizer.state.values():
        array += 7
    gradient = np.array([3.0, -1.0, 2.0])
    np.testing.assert_array_equal(optimizer.step(np.zeros(3), gradient), untouched.step(np.zeros(3), gradient))


# --- a filter of gradients --------------------------------------------------------------------------------------------

COUNT, SIGNAL, NOISE = 40_000, 1.0, 2.0
CURVATURES = np.array([0.1, 0.7, 1.0, 1.6, 2.5, 4.0])


def disk_of_two_gradients(kappa, gamma, start, noise, kept=1.0):
    """The paper's algorithm 1 as written, on a bowl: each step takes two gradients, one ahead of the iterate."""
    iterate, moved, estimate = start, np.zeros(SIZE), None
    for drawn in noise:
        weight = (1 - kappa) / (kappa * gamma)
        taken = weight * CURVATURES * (iterate + gamma * moved) + (1 - weight) * CURVATURES * iterate + drawn
        estimate = taken if estimate is None else (1 - kappa) * estimate + kappa * taken
        moved = kept * iterate - 0.05 * estimate - iterate
        iterate = iterate + moved
    return iterate


def disk(kappa, start, noise, *, ahead=True, kept=1.0):
    """Ours, on the same bowl; or a filter alone, whose gradients are those at the iterate."""
    optimizer, parameters = make_optimizer("disk", learning_rate=0.05, gain=kappa), start
    for drawn in noise:
        at = parameters if ahead else optimizer.left(parameters)
        parameters = optimizer.step(parameters, CURVATURES * at + drawn, kept=kept)
    return optimizer.left(parameters)


@settings(max_examples=50, deadline=None)
@given(noise=GRADIENTS, kappa=st.floats(0.05, 0.95), kept=st.sampled_from([1.0, 0.9]))
def test_one_gradient_ahead_of_the_iterate_is_all_that_disk_needs_at_its_gamma(noise, kappa, kept):
    start = np.linspace(-1, 1, SIZE)
    expected = disk_of_two_gradients(kappa, (1 - kappa) / kappa, start, noise, kept)
    np.testing.assert_allclose(disk(kappa, start, noise, kept=kept), expected, rtol=1e-9, atol=1e-9)


def test_gradients_at_the_iterate_would_make_another_filter():
    start, noise = np.linspace(-1, 1, SIZE), np.random.default_rng(1).standard_normal((STEPS, SIZE))
    expected = disk_of_two_gradients(0.5, 1.0, start, noise)
    np.testing.assert_allclose(disk(0.5, start, noise), expected, rtol=1e-9)
    assert np.abs(disk(0.5, start, noise, ahead=False) - expected).max() > 0.01


@settings(max_examples=50, deadline=None)
@given(gradients=GRADIENTS)
def test_a_filter_that_keeps_nothing_is_gradient_descent(gradients):
    start, optimizer = np.linspace(-1, 1, SIZE), make_optimizer("disk", learning_rate=0.05, gain=1.0)
    plain = steps(make_optimizer("sgd", learning_rate=0.05), start, gradients)
    np.testing.assert_array_equal(optimizer.left(steps(optimizer, start, gradients)), plain)


def test_a_filter_leaves_the_noise_s_known_share_of_an_estimate():
    optimizer, random = make_optimizer("disk", learning_rate=1e-9, gain=0.25), np.random.default_rng(2)
    for _ in range(60):
        optimizer.step(np.zeros(COUNT), 3.0 + NOISE * random.standard_normal(COUNT))
    estimate = optimizer.state["estimate"]
    assert estimate.mean() == pytest.approx(3.0, abs=0.03)
    assert estimate.var() == pytest.approx(NOISE**2 * 0.25 / (2 - 0.25), rel=0.05)  # κ/(2 − κ)


# --- what noise leaves of second moments ------------------------------------------------------------------------------

NOISY = SIGNAL * np.sign(np.arange(COUNT) % 2 - 0.5) + NOISE * np.random.default_rng(3).standard_normal(COUNT)


def shared(gradient, variance=NOISE**2):
    """A tensor's noise, whose second moment is that of all its numbers."""
    return KnownNoise(variance=variance, square=np.array([np.mean(gradient**2)]), alike=len(gradient))


def first_step(noise, gradient=NOISY):
    return make_optimizer("adam", **OPTIONS, noise=noise).step(np.zeros_like(gradient), gradient)


def test_a_tensor_s_step_is_as_long_as_if_its_second_moment_were_that_of_the_signal():
    np.testing.assert_allclose(first_step(shared(NOISY)), -0.05 * NOISY / SIGNAL, rtol=0.1)


def test_second_moments_that_the_noise_is_left_in_would_make_it_shorter(monkeypatch):
    monkeypatch.setattr(Adam, "_without_noise", lambda self, square, noise, weight: square)
    assert np.abs(first_step(shared(NOISY))).max() < 0.5 * 0.05 * np.abs(NOISY).max() / SIGNAL


@pytest.mark.parametrize(("alike", "steps_taken"), [(1, 1), (1, 3), (50, 1), (50, 3)])
def test_where_there_is_nothing_but_noise_a_standard_error_of_it_is_left(alike, steps_taken):
    noise = KnownNoise(variance=4.0, square=np.array([1e-9]), alike=alike)
    optimizer = make_optimizer("adam", **OPTIONS, noise=noise)
    for _ in range(steps_taken):
        moved = optimizer.step(np.zeros(1), np.ones(1))
    weights = 0.05 * 0.95 ** np.arange(steps_taken) / (1 - 0.95**steps_taken)
    error = 4.0 * np.sqrt(2 / alike * np.sum(weights**2))
    np.testing.assert_allclose(moved, -0.05 / np.sqrt(error), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(gradients=GRADIENTS)
def test_without_noise_nothing_is_corrected(gradients):
    start = np.linspace(-1, 1, SIZE)
    plain = steps(make_optimizer("adam", **OPTIONS), start, gradients)
    corrected = steps(make_optimizer("adam", **OPTIONS, noise=KnownNoise(variance=0.0)), start, gradients)
    np.testing.assert_array_equal(corrected, plain)


def test_corrected_steps_resumed_from_a_state_equal_uninterrupted_ones():
    options = {**OPTIONS, "noise": KnownNoise(variance=0.5)}
    before, after = make_optimizer("adam", **options), make_optimizer("adam", **options)
    gradients = [np.array([3.0, -1.0, 0.5]), np.array([0.1, 0.2, -2.0])]
    before.step(np.zeros(3), gradients[0])
    state = before.state
    after.restore(state)
    np.testing.assert_array_equal(after.step(np.ones(3), gradients[1]), before.step(np.ones(3), gradients[1]))
    forgotten = make_optimizer("adam", **options)
    forgotten.restore({name: value for name, value in state.items() if name != "noise"})
    after.restore(state)
    assert not np.array_equal(forgotten.step(np.ones(3), gradients[1]), after.step(np.ones(3), gradients[1]))
