"""A first adapter made of public text: A, and of a core adapter B, where the base model's gradients on it are."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ...client.site.assembly import sampler_of
from ...client.training.dp_sgd import DpSgd
from ...common.crypto.identity import sha256
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError, ModelError
from ...common.model.adapter import Vector
from ...common.model.language_model import LanguageModel
from ...common.privacy.mechanism import NoNoise
from ...common.study.completion import learning_rate_of
from ...common.study.first_adapter import FirstAdapter, Made
from ...common.study.study import Study
from ..builtin.models import base_model_folder
from .instant import dp_sgd_of
from .trial import Tell, Unit, public_units


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A first adapter, of so many ``units`` of public text, and what its A is worth there.

    Attributes:
        caught: the share of the mean gradient's squared norm that lies where A reads, over all layers.
        by_chance: what an A that is drawn catches on average.
        scale: the norm of A's rows, over the mean norm of rows that are drawn.
        norm: the median norm of a unit's gradient before clipping, under this A and under one that is drawn.
    """

    first: FirstAdapter
    units: int
    caught: float
    by_chance: float
    scale: float
    norm: float


def prepare(
    study: Study, public_text: Path, *, said: str, steps: int = 0, tell: Tell = lambda doing: None
) -> Preparation:
    """The first adapter of a study, from records of nobody who has to be protected; ``said`` is what they are.

    A's rows are the top right singular vectors of the gradient of each layer's weight (as in Wang et al. 2024, LoRA-GA,
    and Zhao et al. 2024, GaLore): no other A of that rank catches more of it. The columns of a core adapter's B are the
    left ones. One factor for all layers scales A so that the median norm of a unit's gradient is what it is under an A
    that is drawn: so the study's clipping norm and rate carry over. ``steps`` of the study's own training on all
    of the text, without noise, may follow.

    Raises DataError, ModelError and StudyError.
    """
    tell("reading public text")
    base, model_ = base_model_folder(study.model.name), study.model
    drawn = LanguageModel.load(base, replace(model_.lora, kind="ffa", dora=False), seed=0, precision=model_.precision)
    units = public_units(public_text, study, Tokenisation.load(str(base), vocabulary_size=drawn.vocabulary_size))
    sampler = sampler_of(study, drawn)
    tell(f"computing gradients of {len(units)} public units")
    with _weight_gradients(drawn) as gradients:
        norm = _median_norm(dp_sgd_of(study, sampler), units)
    tell("finding their directions")
    model = LanguageModel.load(base, model_.lora, seed=0, precision=model_.precision)
    tensors = {name: tensor.copy() for name, tensor in model.tensors.items()}
    caught = by_chance = whole = 0.0
    for layer, gradient in gradients.items():
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        left, values, right = _directions(gradient, count=len(tensors[a]), of=layer)
        tensors[a] = right / np.float32(math.sqrt(3))  # the norm, on average, of a row that is drawn
        if model_.adapter == "core":
            tensors[b] = left
        energy = float(gradient.double().square().sum())
        caught, by_chance, whole = caught + values, by_chance + energy * len(right) / right.shape[1], whole + energy
    made = Made(base_sha256=model.folder_sha256, text=said, text_sha256=sha256(public_text.read_bytes()))
    FirstAdapter.of(tensors, made).put_on(model)
    training = dp_sgd_of(study, sampler_of(study, model))
    scale = norm / _median_norm(training, units)
    tensors |= {name: np.float32(scale) * a for name, a in tensors.items() if name.endswith(".lora_A.weight")}
    first = FirstAdapter.of(tensors, made)
    if steps:
        tell(f"training on them, {steps} steps without noise")
        first.put_on(model)
        first = FirstAdapter.of(_trained(study, training, units, steps), made)
    return Preparation(
        first=first, units=len(units), caught=caught / whole, by_chance=by_chance / whole, scale=scale, norm=norm
    )


def _trained(study: Study, training: DpSgd, units: Sequence[Unit], steps: int) -> dict[str, Vector]:
    """The adapter's tensors after steps of the study's optimiser on the clipped gradients of all units."""
    model = training.sampler.model
    start = model.get_adapter()
    change = replace(training, mechanism=NoNoise()).train(
        lambda: units,
        adapter=start,
        optimizer=study.training.server_optimizer(learning_rate=learning_rate_of(study)),
        steps=steps,
        denominator=len(units),
    )
    model.set_adapter((start + change).astype(np.float32))
    return model.tensors


def _median_norm(training: DpSgd, units: Sequence[Unit]) -> float:
    """Of a unit's gradient, before clipping. Raises DataError where most have none that is finite and above zero."""
    found = median(training.norms(units).tolist()) if len(units) else 0.0
    if not 0 < found < math.inf:
        raise DataError(
            f"{len(units)} public units gave no gradients that are of use",
            why="A is made of their directions, and scaled by their norms",
            fix="give more public records, with text that fits into max_tokens",
        )
    return found


def _directions(gradient: torch.Tensor, *, count: int, of: str) -> tuple[Vector, float, Vector]:
    """The top singular vectors of [out, in]: left [out, count], their share of its squared norm, right [count, in].

    Each pair has one of two signs; of these it is the one in which the right one's largest number is positive. Raises
    ModelError where there are fewer.
    """
    if count > min(gradient.shape):
        raise ModelError(
            f"{of} is {list(gradient.shape)}, and has no {count} directions",
            why="a rank above a layer's own adds nothing that the layer could become",
            fix="choose a lower rank or rank_pattern",
        )
    left, values, right = (tensor.cpu().numpy() for tensor in torch.linalg.svd(gradient, full_matrices=False))
    right = right[:count]
    signs = np.sign(right[np.arange(count), np.abs(right).argmax(axis=1)])
    energy = float(np.square(values[:count], dtype=np.float64).sum())
    return np.ascontiguousarray(left[:, :count] * signs), energy, signs[:, None] * right


@contextmanager
def _weight_gradients(model: LanguageModel) -> Iterator[dict[str, torch.Tensor]]:
    """The gradient of each adapted layer's own weight, float32 [out, in] by the layer's name, summed over what is read.

    It follows from what goes into a layer and the gradient of what comes out, so that the base model stays as it is
    held. Raises ModelError of a layer that is not linear.
    """
    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def forward(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            read = inputs[0].detach().flatten(0, -2).float()

            def backward(gradient: torch.Tensor) -> None:
                product = gradient.flatten(0, -2).float().T @ read
                found[name] = found[name] + product if name in found else product

            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    layers = {name: layer for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}
    for name, layer in layers.items():
        if not isinstance(dict(layer.lora_A).get("default"), torch.nn.Linear):
            raise ModelError(
                f"{name} is no linear layer, and no A is made of public text for any other",
                why="its directions are those of the gradient of a matrix that the layer multiplies by",
                fix="leave it out of target_modules",
            )
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
