"""Optimisers: the textbook's steps, and the same steps after a restart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grandrounds.common.model.optimizers import ADAM_EPSILON, make_optimizer

NAMES = ("sgd", "momentum", "adam")
OPTIONS = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95}
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


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_an_empty_state_begins_anew(name):
    optimizer = make_optimizer(name, **OPTIONS)
    first = optimizer.step(np.zeros(3), np.ones(3))
    optimizer.restore({})
    assert optimizer.state == {}
    np.testing.assert_array_equal(optimizer.step(np.zeros(3), np.ones(3)), first)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_state_that_is_forgotten_would_show(name):
    resumed, fresh = make_optimizer(name, **OPTIONS), make_optimizer(name, **OPTIONS)
    resumed.step(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    gradient = np.array([3.0, -1.0, 2.0])
    assert not np.array_equal(resumed.step(np.zeros(3), gradient), fresh.step(np.zeros(3), gradient))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_whoever_holds_a_state_cannot_change_the_optimizer_by_it(name):
    optimizer, untouched = make_optimizer(name, **OPTIONS), make_optimizer(name, **OPTIONS)
    for each in (optimizer, untouched):
        each.step(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    for array in optimizer.state.values():
        array += 7
    gradient = np.array([3.0, -1.0, 2.0])
    np.testing.assert_array_equal(optimizer.step(np.zeros(3), gradient), untouched.step(np.zeros(3), gradient))
