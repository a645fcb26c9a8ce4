"""Per-example gradients of the adapter: each record's own, the same whatever lies beside it in the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...common.errors import ModelError
from ...common.model.example import NO_LOSS, Example
from ...common.model.language_model import LanguageModel, token_losses
from ...common.model.library_errors import library_errors_over_records
from .private_layers import make_private
from .supported_models import WHY_ALONE, is_trained, refuse_coupled_records


def sequence_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each sequence's mean cross-entropy over its own targets, float32 [batch]; 0 for one without a target.

    Never transformers' ``labels=``: that divides by the targets of the whole batch, so that a record's gradient
    would grow and shrink with the length of its neighbours.
    """
    targets = (labels[:, 1:] != NO_LOSS).sum(dim=1)
    return token_losses(logits, labels).sum(dim=1) / targets.clamp(min=1)


class GradSampler:
    """Per-example gradients of a language model's adapter, in physical batches of one fixed shape.

    *Formal guarantee.* Row i of ``gradients`` is a function of example i and the adapter alone, since the loss is each
    sequence's own and what couples records is refused (ARCHITECTURE.md, "Gradients"). That this holds to the last bit
    of this machine's arithmetic is not proved but tested: at start, by ``independent_batch_size``, on random tokens.
    """

    def __init__(self, model: LanguageModel, *, batch_size: int, max_tokens: int) -> None:
        """Prepares the model's trainable layers (once; several samplers may share a model). Raises ModelError."""
        refuse_coupled_records(model.module)
        positions = model.positions or max_tokens
        if max_tokens > positions:
            raise ModelError(
                f"max_tokens is {max_tokens}, but the model has {positions} positions",
                why="it cannot read further",
                fix=f"set max_tokens to {positions} or less",
            )
        self.model = model
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self._hooked = [layer for layer in model.module.modules() if is_trained(layer) and not make_private(layer)]
        if self._hooked:
            _add_opacus_hooks(model.module, self._hooked)

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """The gradient of each example's own loss, float32 [examples, d], in the order of the adapter's layout.

        In the processors' memory, wherever the model computes. At most ``batch_size`` examples of ``max_tokens`` each.
        Raises ModelError when a trained layer was not reached or does not keep the records apart, and ValueError where
        an example is not of this length and this model.
        """
        if not all(example.token_ids.shape == example.labels.shape == (self.max_tokens,) for example in examples):
            raise ValueError("an example is not of the fixed length")
        padding = [Example.padding(self.max_tokens)] * (self.batch_size - len(examples))
        token_ids, labels = self.model.stack([*examples, *padding])
        self._clear()  # an earlier batch may have failed half-way
        with torch.enable_grad():
            losses = sequence_losses(self.model.logits(token_ids), labels)
            with library_errors_over_records(
                "the model gives no gradient of what it predicts", why=WHY_ALONE, fix="choose another model"
            ):
                losses.sum().backward()  # type: ignore[no-untyped-call]
        return self._collect()[: len(examples)]

    def _collect(self) -> torch.Tensor:
        gradients = torch.empty(self.batch_size, self.model.layout.dimension, device=self.model.device)
        start = 0
        for name, parameter in self.model.trained.items():
            grad_sample = getattr(parameter, "grad_sample", None)
            if grad_sample is None or grad_sample.shape != (self.batch_size, *parameter.shape):
                found = "no gradient" if grad_sample is None else f"gradients of shape {list(grad_sample.shape)}"
                raise ModelError(
                    f"{name} has {found} after a batch of {self.batch_size} records",
                    why=f"{WHY_ALONE}; the model flattens the batch or does not use this layer",
                    fix="choose other target_modules (layers of the attention keep records apart in most models)",
                )
            end = start + parameter.numel()
            gradients[:, start:end] = grad_sample.flatten(1)
            parameter.grad_sample = None  # so that memory holds one layer twice, not all of them
            start = end
        return gradients.cpu()

    def _clear(self) -> None:
        for parameter in self.model.trained.values():
            parameter.grad = None
            parameter.grad_sample = None
        for layer in self._hooked:  # what Opacus keeps between a forward and its backward pass
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)
            for parameter in layer.parameters(recurse=False):
                vars(parameter).pop("_current_grad_sample", None)
                parameter._forward_counter = 0


def _add_opacus_hooks(module: Any, layers: list[nn.Module]) -> None:
    """Leave it to Opacus where a trained layer is not a plain linear one."""
    from opacus.grad_sample import GradSampleHooks

    if any(getattr(layer, "gradient_checkpointing", False) for layer in module.modules()):
        raise ModelError(
            f"gradient checkpointing with a trained {type(layers[0]).__name__}",
            why="Opacus's hooks see each recomputation as another use of the layer, and the gradients would be wrong",
            fix="turn checkpointing off, or choose linear layers as target_modules",
        )
    if any(hasattr(parameter, "_forward_counter") for layer in layers for parameter in layer.parameters(recurse=False)):
        return  # another sampler of this model has added them
    for layer in layers:
        layer.training = True  # the hooks pass over a layer in evaluation mode; this flag does not reach its children
    GradSampleHooks(nn.ModuleList(layers), loss_reduction="sum", strict=False)
