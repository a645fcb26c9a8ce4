"""Trainable layers whose backward pass leaves each record's own gradient beside the parameter, as Opacus's hooks do."""

from typing import Any, cast

import torch
from torch import nn


class _PerExampleLinear(torch.autograd.Function):
    """x·Wᵀ, whose backward leaves ``W.grad_sample`` [batch, out, in] instead of the sum over the batch."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.weight = weight  # a saved tensor would come back as a copy under gradient checkpointing
        return nn.functional.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (inputs,) = ctx.saved_tensors
        (grad_output,) = grad_outputs
        weight = ctx.weight
        # Over all positions of one record; in float32, since a bfloat16 sum would lose the small terms.
        _leave(weight, torch.bmm(_by_record(grad_output).mT, _by_record(inputs)))
        return (grad_output @ weight if ctx.needs_input_grad[0] else None), None


class PrivateLinear(nn.Linear):
    """A trainable linear layer without bias that leaves ``weight.grad_sample`` in the backward pass, as Opacus does.

    Made by replacing a layer's ``__class__``, so that module tree, state dict and export stay peft's. One matrix
    product a record; equal to Opacus's hooks to rounding, cheaper, and correct under gradient checkpointing.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """x [batch, ..., in] -> [batch, ..., out]."""
        return cast(torch.Tensor, _PerExampleLinear.apply(input, self.weight))  # type: ignore[no-untyped-call]


def make_private(layer: nn.Module) -> bool:
    """Give a trained layer the class that leaves per-example gradients; false where there is none for its kind."""
    if type(layer) is nn.Linear and layer.bias is None:
        layer.__class__ = PrivateLinear
    return isinstance(layer, PrivateLinear)


def _leave(parameter: Any, grad_sample: torch.Tensor) -> None:
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        parameter.grad_sample = grad_sample
    else:  # the layer was applied more than once in the forward pass
        found += grad_sample


def _by_record(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, ..., features] -> float32 [batch, positions, features]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).float()
