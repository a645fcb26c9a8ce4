"""The adapter on a base model: what it is, and what it is before training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, StudyError
from .adapter import Vector
from .base_model import quiet
from .library_errors import library_errors
from .nf4 import unseen
from .target_layers import ALL_LINEAR, WHY_TARGETS, is_called, matches, named, target_layers

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

Number = TypeVar("Number", int, float)
Kind = Literal["ffa", "lora", "core"]
FirstA = Literal["uniform", "orthonormal"]

# How peft calls A and B of an embedding, before the letter.
_EMBEDDED: Final = "lora_embedding_"

# Rows of a weight whose squares are in memory at a time, as float64.
_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter: ``scaling·B·A`` is added to the weight of each target layer (Hu et al. 2022).

    ``ffa``: A is public, drawn once and frozen, and B is trained (Sun et al. 2024, FFA-LoRA): the mean of B is the mean
    of the updates, and noise is not squared. ``lora``: A and B are trained. ``core``: A and B are public, and a
    square matrix between them is trained, ``scaling·B·core·A`` (Bałazy et al. 2024, LoRA-XS). Others (RoLoRA) raise
    StudyError.

    Attributes:
        target_modules: the layers by the last parts of their names; or ``ALL_LINEAR``; or a regular expression that
            whole names match.
        layers: only blocks of these numbers, from the first to the last, counted from 0.
        rank_pattern: the rank where it is another, by the last parts of a layer's name; the longer one counts.
        alpha_pattern: alpha, likewise.
        rslora: scaling is alpha/√rank (Kalajdzievski 2023, rsLoRA), not alpha/rank.
        dora: the sum's rows are brought to the norms of a trained vector (Liu et al. 2024, DoRA), by a factor in which
            the sum's own norm counts as a constant (their section 4.3), as in peft.
        a_init: the rows of A as they are drawn, or orthogonal to each other and of one norm, so that together they have
            the expected square norm of the former: what is trained is as large, and a learning rate of one is one of
            the other.
    """

    target_modules: tuple[str, ...] | str
    layers: tuple[int, int] | None = None
    kind: Kind = "ffa"
    rank: int = 4
    alpha: float = 8.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    a_init: FirstA = "uniform"

    @property
    def numbered(self) -> list[int] | None:
        """The numbers of the blocks that get an adapter; None: of all."""
        return None if self.layers is None else list(range(self.layers[0], self.layers[1] + 1))

    def names(self, layer: str) -> bool:
        """Whether ``target_modules`` names a layer, as every one is by ``ALL_LINEAR``. Raises ModelError."""
        if isinstance(self.target_modules, str):
            return self.target_modules == ALL_LINEAR or matches(self.target_modules, layer)
        return any(is_called(layer, target) for target in self.target_modules)

    def rank_of(self, layer: str) -> int:
        """The adapter's rank on a layer."""
        return _of(layer, self.rank_pattern, self.rank)

    def scaling_of(self, layer: str) -> float:
        """What B·A is multiplied by on a layer."""
        rank = self.rank_of(layer)
        return _of(layer, self.alpha_pattern, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def __str__(self) -> str:
        among = "" if self.layers is None else f" of layers {self.layers[0]} to {self.layers[1]}"
        kind = "DoRA, " * self.dora
        root = " over the root of the rank" * self.rslora
        but = "".join(f" ({rank} on {layer})" for layer, rank in self.rank_pattern.items())
        other = "".join(f" ({alpha:g} on {layer})" for layer, alpha in self.alpha_pattern.items())
        return f"{kind}rank {self.rank}{but}, alpha {self.alpha:g}{other}{root}, on {named(self.target_modules)}{among}"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise StudyError(
                f"adapter kind {self.kind!r} is not built",
                why="which tensors are trained decides what is clipped and noised",
                fix="choose 'ffa' (A frozen, the default), 'lora' (A and B trained) or 'core' (a matrix between them)",
            )


def longest_first(pattern: Mapping[str, Number]) -> dict[str, Number]:
    """Layers' names and numbers as peft takes them, which stops at the first that fits: the longer names first."""
    return dict(sorted(pattern.items(), key=lambda item: (-len(item[0]), item[0])))


def attach(base: Any, lora: Lora, *, seed: int) -> Any:
    """A peft model: ``base`` with a fresh adapter on the layers that text reaches, B zero, A drawn from ``seed``.

    Under DoRA each magnitude is the norm of its row. Of a core adapter the core is zero, and so is B until it is set:
    both are public. Raises ModelError where a target names no such layer, where
    merging would break the model, and where peft refuses.
    """
    from .peft_library import LoraConfig, get_peft_model

    chosen, beside = target_layers(base, lora)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        rank_pattern=longest_first(lora.rank_pattern),
        alpha_pattern=longest_first(lora.alpha_pattern),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=chosen,
        exclude_modules=beside,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        # Conv1D (GPT-2) keeps its weight transposed.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.modules()),
    )
    attaching = library_errors(
        f"peft attaches no adapter of {lora}",
        why=WHY_TARGETS,
        fix="choose other target_modules, or other layers; those of the attention work in most models",
    )
    with attaching, quiet(), unseen():
        module = get_peft_model(base, adapter, autocast_adapter_dtype=True)
    _draw_a(module, seed, lora.a_init)
    if lora.dora:
        _measure_magnitudes(module)
    for name, parameter in module.named_parameters():
        if lora.kind == "core" or (lora.kind == "ffa" and _is_a(name)):
            parameter.requires_grad_(False)
    if lora.kind == "core":
        _insert_cores(module)
    return module


def copy_tensors(source: Mapping[str, Vector], target: Mapping[str, "torch.Tensor"]) -> None:
    """Set tensors to the arrays of the same names."""
    import torch

    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(torch.from_numpy(source[name]))


def _of(layer: str, pattern: Mapping[str, Number], otherwise: Number) -> Number:
    return next((number for name, number in longest_first(pattern).items() if is_called(layer, name)), otherwise)


def _draw_a(module: Any, seed: int, first: FirstA) -> None:
    """Kaiming-uniform A, as peft's, from a generator whose stream is the same on every machine and version of torch.

    On an embedding, too, where peft draws B and begins with an A of zeros: under ``ffa`` nothing would ever be learnt.
    Raises ModelError where A has more rows than can be orthogonal.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    parameters = dict(module.named_parameters())
    for name in sorted(filter(_is_a, parameters)):
        shape = tuple(parameters[name].shape)
        reads = 1 if _EMBEDDED in name else math.prod(shape[1:])  # of an embedding, one token
        bound = 1 / math.sqrt(reads)
        drawn = generator.uniform(-bound, bound, shape)
        if first == "orthonormal":
            rows = orthonormal(drawn.reshape(shape[0], -1), of=name)
            # A uniform number of that bound has a mean square of a third of the bound's.
            drawn = (bound * math.sqrt(rows.shape[1] / 3) * rows).reshape(shape)
        copy_tensors({name: drawn.astype(np.float32)}, {name: parameters[name]})
    for name in parameters:
        if f"{_EMBEDDED}B" in name:
            parameters[name].data.zero_()


def orthonormal(rows: NDArray[np.float64], *, of: str) -> NDArray[np.float64]:
    """The rows [r, n], each of norm 1 and orthogonal to those before it, the same to the last bit on every machine.

    By the modified Gram-Schmidt process, whose sums are in an order that n fixes; of random rows it is exact to
    rounding. Raises ModelError where there are more rows than columns; ``of`` names what they are.
    """
    if len(rows) > rows.shape[1]:
        raise ModelError(
            f"{of} has {len(rows)} rows of {rows.shape[1]} numbers, and no more of them than that can be orthogonal",
            why="a rank above a layer's own adds nothing that the layer could become",
            fix='choose a lower rank or rank_pattern, or a_init = "uniform"',
        )
    rows = rows.copy()
    for number, row in enumerate(rows):
        row /= math.sqrt(_added_up(row * row))
        after = rows[number + 1 :]
        after -= np.asarray(_added_up(after * row))[:, None] * row
    return rows


def _insert_cores(module: Any) -> None:
    """A square matrix of zeros behind each A, trained. Raises ModelError of a layer for which that is not built."""
    from .peft_library import CoreLinear

    for name, layer in list(module.named_modules()):
        if not hasattr(layer, "lora_A"):
            continue
        if "default" not in layer.lora_A or not CoreLinear.follow(layer.lora_A["default"]):
            raise ModelError(
                f"{name} is no linear layer, and a core adapter is built for no other",
                why="each record's own gradient of a core is computed where a layer multiplies by a matrix",
                fix='leave it out of target_modules, or choose adapter = "ffa"',
            )


def _is_a(parameter: str) -> bool:
    return "lora_A" in parameter or f"{_EMBEDDED}A" in parameter


def _measure_magnitudes(module: Any) -> None:
    """Set the magnitudes of DoRA to the rows' norms, which peft's own differ from by what a machine rounds.

    Raises ModelError where a row is zero: its direction is nought divided by nought.
    """
    for name, norms in base_magnitudes(module).items():
        magnitude = module.get_submodule(name).lora_magnitude_vector["default"].weight
        magnitude.data = norms.to(magnitude.device)
        if not magnitude.all():
            raise ModelError(
                f"{name} has a row of zeros, which DoRA would divide by",
                why="no record would have a gradient there, and a study would spend privacy on nothing",
                fix="leave dora out, or this layer out of target_modules",
            )


def base_magnitudes(module: Any) -> dict[str, "torch.Tensor"]:
    """DoRA's magnitudes at which nothing is added to the base model: the norms of its rows, by the layers' names."""
    from .peft_library import dequantize_module_weight

    found = {}
    for name, layer in module.named_modules():
        if getattr(layer, "lora_magnitude_vector", None):
            weight = dequantize_module_weight(layer.get_base_layer()).detach()
            found[name] = _row_norms(weight.T if layer.fan_in_fan_out else weight)
    return found


def _row_norms(weight: "torch.Tensor") -> "torch.Tensor":
    """Each row's Euclidean norm, float32 [rows] of [rows, columns], the same to the last bit on every machine.

    Squares of float32 are exact in float64.
    """
    import torch

    norms = []
    for start in range(0, len(weight), _ROWS):
        squares = weight[start : start + _ROWS].float().double().square()
        norms.append(np.sqrt(_added_up(squares.cpu().numpy())).astype(np.float32))
    return torch.from_numpy(np.concatenate(norms))


def _added_up(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums over the last axis, float64 [...] of [..., n]: pair by pair, in an order that n fixes."""
    while (count := numbers.shape[-1]) > 1:
        half = count // 2
        pairs = numbers[..., :half] + numbers[..., half : 2 * half]
        numbers = np.concatenate([pairs, numbers[..., 2 * half :]], axis=-1)
    return numbers[..., 0]
