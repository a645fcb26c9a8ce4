"""Training steps over the same records in the same physical batches: without privacy, ours, and Opacus's two."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ....client.training.batch_invariance import random_example
from ....client.training.dp_sgd import DpSgd
from ....client.training.grad_samples import GradSampler, Shape
from ....client.training.rank_processes import begin
from ....client.training.ranks import Ranks
from ....client.training.unit_sum import UnitSum
from ....common.model.example import NO_LOSS, Example
from ....common.model.language_model import LanguageModel, token_losses
from ....common.model.optimizers import make_optimizer
from ....common.privacy.mechanism import Lattice, Mechanism, NoNoise, RoundedGaussian, site_noise_stddev
from ....common.study.study import Study

_CLIPPING_NORM: Final = 0.5
_NOISE_MULTIPLIER: Final = 1.0
_LEARNING_RATE: Final = 1e-3

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a step computes: one step of ``model``'s adapter over ``records``, ``batch`` of them at a time."""

    model: LanguageModel
    records: Sequence[Example]
    batch: int

    @classmethod
    def random(cls, model: LanguageModel, *, records: int, tokens: int, batch: int) -> "Task":
        """Of records of random tokens, all of them as long as they can be."""
        rng = np.random.default_rng(0)
        return cls(
            model=model, records=[random_example(model, tokens, tokens, rng) for _ in range(records)], batch=batch
        )

    def with_own_adapter(self) -> "Task":
        """The same task on a model of its own that shares the frozen weights: the kinds patch layers, each its own."""
        shared = {id(tensor): tensor for tensor in self.model.module.parameters() if not tensor.requires_grad}
        shared |= {id(tensor): tensor for tensor in self.model.module.buffers()}
        return Task(
            model=LanguageModel(copy.deepcopy(self.model.module, shared)), records=self.records, batch=self.batch
        )

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
        """Token ids and labels [batch, tokens] of each physical batch, and whether it is the last."""
        for start in range(0, len(self.records), self.batch):
            stop = start + self.batch
            yield *self.model.stack(self.records[start:stop]), stop >= len(self.records)


def plain(task: Task) -> Step:
    """A step by transformers and peft as anybody writes it, accumulated over physical batches: no privacy."""
    model = task.model
    batches = -(-len(task.records) // task.batch)
    optimizer = torch.optim.SGD(model.trained.values(), lr=_LEARNING_RATE)

    def step() -> None:
        for token_ids, labels, _ in task.batches():
            (model.module(input_ids=token_ids, labels=labels, use_cache=False).loss / batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def private(task: Task) -> Step:
    """Ours, as a site runs it: gradients, clipping, integers, check, sum, noise, optimiser.

    Each record is a unit of its own. Raises what a batch that cannot be computed raises: in a step it would count as
    zero, and soon be done.
    """
    sampler = GradSampler(task.model, [Shape(len(task.records[0].token_ids), task.batch)])
    UnitSum(lattice_of(task.model), task.model.device).add(sampler.gradients(task.records[: task.batch]))
    return _private_step(task, sampler)


def private_on(ranks: Ranks, task: Task, *, base: Path, study: Study) -> Step:
    """Ours with the records divided over ``ranks``, each with a device and the model of the folder ``base`` on it.

    ``study`` says how many are computed at a time, and what the adapter is.
    """
    sampler = begin(ranks, task.model, base=base, study=study, checkpointing="off", sharding="off")
    return _private_step(task, sampler)


def lattice_of(model: LanguageModel) -> Lattice:
    """The lattice on which all that is measured sums a model's gradients."""
    return Lattice(dimension=model.layout.dimension, clipping_norm=_CLIPPING_NORM)


def _private_step(task: Task, sampler: GradSampler) -> Step:
    model, lattice = task.model, lattice_of(task.model)
    dp_sgd = DpSgd(sampler=sampler, lattice=lattice, mechanism=mechanism_for(lattice))
    optimizer = make_optimizer("sgd", learning_rate=_LEARNING_RATE)

    def step() -> None:
        adapter = model.get_adapter()
        change = dp_sgd.train(
            lambda: [[record] for record in task.records],
            adapter=adapter,
            optimizer=optimizer,
            steps=1,
            denominator=float(len(task.records)),
        )
        model.set_adapter((adapter + change).astype(np.float32))

    return step


def mechanism_for(lattice: Lattice) -> Mechanism:
    """Exact noise; none where there is no library of ciphers to draw it with (``draws_noise``)."""
    if not draws_noise():
        return NoNoise()
    stddev = site_noise_stddev(noise_multiplier=_NOISE_MULTIPLIER, sensitivity=lattice.sensitivity, honest_shares=1)
    return RoundedGaussian(noise_stddev=stddev)


def draws_noise() -> bool:
    """Whether exact noise can be drawn here."""
    return importlib.util.find_spec("cryptography") is not None


def sequence_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each sequence's mean cross-entropy over its own targets, float32 [batch]: what Opacus is to be given."""
    targets = (labels[:, 1:] != NO_LOSS).sum(dim=1)
    return token_losses(logits, labels).sum(dim=1) / targets.clamp(min=1)


def opacus_hooks(task: Task) -> Step:
    """Opacus's hooks and optimiser, its noise from torch's generator."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    task.model.module.train()  # the hooks do nothing otherwise; no dropout is left in the model
    module = GradSampleModule(task.model.module, loss_reduction="mean", strict=False)
    optimizer = DPOptimizer(**_opacus_options(task))

    def step() -> None:
        for token_ids, labels, is_last in task.batches():
            losses = sequence_losses(module(input_ids=token_ids, use_cache=False).logits, labels)
            _backward(losses.mean())
            _advance(optimizer, skip=not is_last)

    return step


def opacus_ghost(task: Task) -> Step:
    """Opacus's ghost clipping: norms by one backward pass, the sum of the clipped gradients by a second."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    task.model.module.train()
    module = GradSampleModuleFastGradientClipping(
        task.model.module, loss_reduction="mean", strict=False, max_grad_norm=_CLIPPING_NORM
    )
    optimizer = DPOptimizerFastGradientClipping(**_opacus_options(task))

    def step() -> None:
        for token_ids, labels, is_last in task.batches():
            losses = sequence_losses(module(input_ids=token_ids, use_cache=False).logits, labels)
            _backward(DPTensorFastGradientClipping(module, optimizer, losses, loss_reduction="mean"))
            _advance(optimizer, skip=not is_last)

    return step


# By what a table calls them; the first is what the others are compared with.
KINDS: Final[dict[str, Callable[[Task], Step]]] = {
    "without privacy": plain,
    "private": private,
    "Opacus, ghost clipping": opacus_ghost,
    "Opacus, hooks": opacus_hooks,
}
# What cannot be had under gradient checkpointing: Opacus takes a recomputed layer for one that is used twice.
WITHOUT_CHECKPOINTING: Final = ("Opacus, ghost clipping", "Opacus, hooks")


def _opacus_options(task: Task) -> dict[str, Any]:
    return {
        "optimizer": torch.optim.SGD(task.model.trained.values(), lr=_LEARNING_RATE),
        "noise_multiplier": _NOISE_MULTIPLIER,
        "max_grad_norm": _CLIPPING_NORM,
        "expected_batch_size": len(task.records),
    }


def _backward(loss: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on hooks whose inputs need no gradient, which is intended
        loss.backward()


def _advance(optimizer: Any, *, skip: bool) -> None:
    """As Opacus's BatchMemoryManager does after each physical batch: only the last of a step moves the adapter."""
    optimizer.signal_skip_step(do_skip=skip)
    optimizer.step()
    optimizer.zero_grad()
