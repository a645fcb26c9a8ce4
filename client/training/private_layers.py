"""Trainable layers whose backward pass leaves each record's own gradient beside the parameter, as Opacus's hooks do."""

from typing import Any, Final, cast

import torch
from torch import nn

from ...common.model.peft_library import DoraLinearLayer, Embedding, dequantize_module_weight


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
        grads, inputs = _by_record(grad_output), _by_record(inputs)
        _leave(weight, torch.bmm(grads.mT, inputs, out=_room(weight, len(grads))))
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


class _PerExampleLookup(torch.autograd.Function):
    """A's columns at the tokens, whose backward leaves ``A.grad_sample`` [batch, rank, vocabulary] if A is trained."""

    @staticmethod
    def forward(ctx: Any, token_ids: torch.Tensor, table: nn.Parameter, untrained: int | None) -> torch.Tensor:
        ctx.save_for_backward(token_ids)
        ctx.table, ctx.untrained = table, untrained
        return nn.functional.embedding(token_ids, table.T)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[None, None, None]:
        (token_ids,) = ctx.saved_tensors
        grads, (rank, vocabulary) = _by_record(grad_outputs[0]), ctx.table.shape
        if ctx.untrained is not None:
            grads = grads * (token_ids != ctx.untrained).unsqueeze(-1)
        batch = len(grads)
        rows = token_ids + vocabulary * torch.arange(batch, device=token_ids.device).unsqueeze(1)
        found = grads.new_zeros(batch * vocabulary, rank).index_add_(0, rows.flatten(), grads.flatten(0, 1))
        _leave(ctx.table, found.view(batch, vocabulary, rank).mT)
        return None, None, None


class PrivateEmbedding(Embedding):  # type: ignore[misc]
    """An adapter on an embedding, whose A and B are parameters and no layers: both leave ``grad_sample``."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Token ids [batch, positions] -> [batch, positions, features]."""
        (name,) = self.active_adapters
        embedded: torch.Tensor = self.base_layer(x, *args, **kwargs)
        inner = _PerExampleLookup.apply(x, self.lora_embedding_A[name], self.base_layer.padding_idx)  # type: ignore[no-untyped-call]
        added = _PerExampleLinear.apply(inner, self.lora_embedding_B[name]) * self.scaling[name]  # type: ignore[no-untyped-call]
        scale = self._get_embed_scale()  # of Gemma, which multiplies what it embeds
        adapted: torch.Tensor = embedded + (added if scale is None else added * scale)
        return adapted.to(embedded.dtype)


# The kinds of layers that have one which leaves per-example gradients.
_PRIVATE: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: PrivateLinear,
    DoraLinearLayer: PrivateMagnitude,
    Embedding: PrivateEmbedding,
}


def make_private(module: nn.Module) -> list[nn.Module]:
    """Give a model's trained layers the classes that leave per-example gradients; those of other kinds are returned."""
    for layer in module.modules():
        trained = any(map(is_trained, layer.children())) if type(layer) is Embedding else is_trained(layer)
        if trained and type(layer) in _PRIVATE and getattr(layer, "bias", None) is None:
            layer.__class__ = _PRIVATE[type(layer)]
    private = [layer for layer in module.modules() if type(layer) in _PRIVATE.values()]
    cared_for = {*private, *(part for layer in private for part in layer.children())}
    return [layer for layer in module.modules() if is_trained(layer) and layer not in cared_for]


def is_trained(layer: nn.Module) -> bool:
    """Whether the layer has a trained parameter of its own."""
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _room(parameter: Any, records: int) -> torch.Tensor | None:
    """The parameter's ``grad_room``, if somebody gave it one of so many records, and no gradients lie there yet."""
    room: torch.Tensor | None = getattr(parameter, "grad_room", None)
    is_free = room is not None and len(room) == records and getattr(parameter, "grad_sample", None) is None
    return room if is_free else None


def _leave(parameter: Any, grad_sample: torch.Tensor) -> None:
    if getattr(parameter, "grad_sample", None) is not None:  # the layer was applied more than once
        parameter.grad_sample += grad_sample
        return
    room = _room(parameter, len(grad_sample))
    parameter.grad_sample = grad_sample if room is None or room is grad_sample else room.copy_(grad_sample)


def _by_record(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, ..., features] -> float32 [batch, positions, features]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).float()
