"""Trainable layers whose backward pass leaves each record's own gradient beside the parameter, as Opacus's hooks do."""

from typing import Any, Final, cast

import torch
from torch import nn

from ...common.model.peft_library import DoraLinearLayer, dequantize_module_weight


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


class _PerExampleScale(torch.autograd.Function):
    """x·m, a factor for each feature, whose backward leaves ``m.grad_sample`` [batch, features]."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, factor: nn.Parameter) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.factor = factor
        return inputs * factor

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (inputs,) = ctx.saved_tensors
        (grad_output,) = grad_outputs
        _leave(ctx.factor, (_by_record(grad_output) * _by_record(inputs)).sum(dim=1))
        return grad_output * ctx.factor, None


class PrivateMagnitude(DoraLinearLayer):  # type: ignore[misc]
    """DoRA's trained magnitude of a linear layer (Liu et al. 2024), which leaves ``weight.grad_sample`` [batch, out].

    As peft's, the norm of the adapted weight counts as a constant (their section 4.3), so that a record's gradients on
    A, B and the magnitude depend on that record and the adapter alone. A magnitude of another layer is not built.
    """

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: nn.Linear,  # noqa: N803 (peft's names)
        lora_B: nn.Linear,  # noqa: N803
        scaling: float,
        base_layer: nn.Linear,
        base_result: torch.Tensor,
        adapter_name: str = "",
    ) -> torch.Tensor:
        """What is added to the base layer's result [batch, ..., out]."""
        with torch.no_grad():
            weight = dequantize_module_weight(base_layer).to(x.dtype)
            norm = self.get_weight_norm(weight, lora_B.weight @ lora_A.weight, scaling)
        unbiased = base_result if base_layer.bias is None else base_result - base_layer.bias
        direction = (unbiased + lora_B(lora_A(x)) * scaling) / norm
        return cast(torch.Tensor, _PerExampleScale.apply(direction, self.weight)) - unbiased  # type: ignore[no-untyped-call]


# The kinds of trained layers that have one which leaves per-example gradients.
_PRIVATE: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: PrivateLinear,
    DoraLinearLayer: PrivateMagnitude,
}


def make_private(layer: nn.Module) -> bool:
    """Give a trained layer the class that leaves per-example gradients; false where there is none for its kind."""
    if getattr(layer, "bias", None) is None and type(layer) in _PRIVATE:
        layer.__class__ = _PRIVATE[type(layer)]
    return type(layer) in _PRIVATE.values()


def _leave(parameter: Any, grad_sample: torch.Tensor) -> None:
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        parameter.grad_sample = grad_sample
    else:  # the layer was applied more than once in the forward pass
        found += grad_sample


def _by_record(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, ..., features] -> float32 [batch, positions, features]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).float()
