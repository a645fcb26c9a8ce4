"""Per-example gradients of the adapter: each record's own, the same whatever lies beside it in the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ...common.errors import ModelError
from ...common.model.example import NO_LOSS, Example
from ...common.model.language_model import LanguageModel
from ...common.model.library_errors import library_errors_over_records
from .private_layers import make_private
from .ranks import ALONE, Ranks
from .supported_models import WHY_ALONE, refuse_coupled_records

# Logits that are worked on at a time: what stays in a processor's caches, and what keeps a GPU busy.
_AT_A_TIME: Final = {"cpu": 1 << 20, "cuda": 1 << 26}


def loss_gradients(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient on logits [batch, tokens, vocabulary] of each sequence's own loss, which takes their place.

    The loss is the mean cross-entropy over the sequence's own targets, 0 for one without a target; its gradient on the
    logits before a target is (softmax - one-hot) / targets. Never transformers' ``labels=``: that divides by the
    targets of the whole batch, so that a record's gradient would grow and shrink with the length of its neighbours.

    Logits are most of what a batch holds beside its activations, and autograd would keep three more of their size to
    come to the same. A model that still needs them for its backward pass is noticed there, by PyTorch's own count of
    what was overwritten.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=NO_LOSS)
    learnt = targets != NO_LOSS
    weights = learnt / learnt.sum(dim=1, keepdim=True).clamp(min=1)
    gradients = logits.detach()
    at_a_time = max(1, _AT_A_TIME[logits.device.type] // logits.shape[-1])
    for record in zip(gradients, targets.clamp(min=0), weights, strict=True):  # no call sees rows of two records
        for rows, wanted, weight in zip(*(part.split(at_a_time) for part in record), strict=True):
            difference = torch.softmax(rows, dim=-1, dtype=torch.float32)
            difference[torch.arange(len(rows), device=rows.device), wanted] -= 1
            torch.mul(difference, weight[:, None], out=rows)
    return gradients


@dataclass(frozen=True, order=True)
class Shape:
    """A physical batch: ``batch`` examples of ``tokens`` each, whichever of them are padding."""

    tokens: int
    batch: int


class GradSampler:
    """Per-example gradients of a language model's adapter, in physical batches of a few fixed shapes.

    *Formal guarantee.* Row i of ``gradients`` is a function of example i and the adapter alone: its shape follows from
    its own length, the loss is each sequence's own, and what couples records is refused (ARCHITECTURE.md,
    "Gradients"). That this holds to the last bit of this machine's arithmetic is not proved but tested: at start, by
    ``independent_shapes``, on random tokens.
    """

    # How it computes, and why, in words for the site alone.
    told: Sequence[str] = ()

    def __init__(self, model: LanguageModel, shapes: Sequence[Shape], *, ranks: Ranks = ALONE) -> None:
        """Prepares the model's trainable layers (once; several samplers may share a model). Raises ModelError.

        ``shapes`` are of different ``tokens``: one for each length that examples have. ``ranks`` have the same sampler
        each, and compute parts of a step.
        """
        if not model.keeps_records_apart:
            refuse_coupled_records(model.module)
            model.keeps_records_apart = True
        self.ranks = ranks
        self.model = model
        self.shapes = tuple(sorted(shapes))
        self._by_tokens = {shape.tokens: shape for shape in self.shapes}
        longest, positions = self.shapes[-1].tokens, model.positions
        if positions is not None and longest > positions:
            raise ModelError(
                f"max_tokens is {longest}, but the model has {positions} positions",
                why="it cannot read further",
                fix=f"set max_tokens to {positions} or less",
            )
        self._hooked = make_private(model.module)
        if self._hooked:
            _add_opacus_hooks(model.module, self._hooked)

    def shape_of(self, example: Example) -> Shape:
        """The shape in which an example is computed, by its length alone. Raises ValueError where it has none."""
        shape = self._by_tokens.get(len(example.token_ids))
        if shape is None or not example.token_ids.shape == example.labels.shape == (shape.tokens,):
            raise ValueError("an example has none of the fixed lengths")
        return shape

    def gradients(self, examples: Sequence[Example]) -> torch.Tensor:
        """The gradient of each example's own loss, float32 [examples, d], in the order of the adapter's layout.

        Where the model computes. The examples are of one shape, at most its ``batch``. Raises ModelError when a trained
        layer was not reached or does not keep the records apart, and ValueError as ``shape_of``, where they are not of
        one shape, and for a token that the model does not have.
        """
        (shape,) = {self.shape_of(example) for example in examples}
        padding = [Example.padding(shape.tokens)] * (shape.batch - len(examples))
        token_ids, labels = self.model.stack([*examples, *padding])
        gradients = torch.empty(shape.batch, self.model.layout.dimension, device=self.model.device)
        self._clear()  # an earlier batch may have failed half-way
        self._give_room(gradients)
        with self.model.together(), torch.enable_grad():
            logits = self.model.logits(token_ids)
            on_logits = loss_gradients(logits, labels)
            with library_errors_over_records(
                "the model gives no gradient of what it predicts", why=WHY_ALONE, fix="choose another model"
            ):
                logits.backward(on_logits)  # type: ignore[no-untyped-call]
        self._collect(shape.batch)
        return gradients[: len(examples)]

    def _give_room(self, gradients: torch.Tensor) -> None:
        """Have the layers' gradients lie in ``gradients`` [batch, d] at once: memory holds all of them once."""
        columns = torch.split(gradients, list(self.model.layout.sizes), dim=1)
        for parameter, own in zip(self.model.trained.values(), columns, strict=True):
            parameter.grad_room = own.view(len(gradients), *parameter.shape)

    def _collect(self, batch: int) -> None:
        for name, parameter in self.model.trained.items():
            grad_sample = getattr(parameter, "grad_sample", None)
            if grad_sample is None or grad_sample.shape != parameter.grad_room.shape:
                found = "no gradient" if grad_sample is None else f"gradients of shape {list(grad_sample.shape)}"
                raise ModelError(
                    f"{name} has {found} after a batch of {batch} records",
                    why=f"{WHY_ALONE}; the model flattens the batch or does not use this layer",
                    fix="choose other target_modules (layers of the attention keep records apart in most models)",
                )
            if grad_sample is not parameter.grad_room:  # Opacus's hooks made it
                parameter.grad_room.copy_(grad_sample)
            parameter.grad_sample = parameter.grad_room = None

    def _clear(self) -> None:
        for parameter in self.model.trained.values():
            parameter.grad = parameter.grad_sample = parameter.grad_room = None
        for layer in self._hooked:  # what Opacus keeps between a forward and its backward pass
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)
            for parameter in layer.parameters(recurse=False):
                vars(parameter).pop("_current_grad_sample", None)
                vars(parameter)["_forward_counter"] = 0


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
