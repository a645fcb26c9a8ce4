"""What a private training step costs beside the same LoRA step without privacy, and beside Opacus's hooks."""

import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...client.training.batch_invariance import random_example
from ...client.training.dp_sgd import DpSgd
from ...client.training.grad_samples import GradSampler, Shape, sequence_losses
from ...common.model.devices import PROCESSORS
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from ...common.model.lora import Lora
from ...common.model.optimizers import make_optimizer
from ...common.privacy.mechanism import Lattice, RoundedGaussian, site_noise_stddev
from . import peak_memory

_CLIPPING_NORM = 0.5
_NOISE_MULTIPLIER = 1.0
_LEARNING_RATE = 1e-3
_WARM_UP = 1

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """What is measured: one step over ``batch_size`` random sequences of ``max_tokens``, each a unit of its own."""

    folder: Path
    lora: Lora
    batch_size: int = 8
    max_tokens: int = 64
    repetitions: int = 7
    device: str = PROCESSORS

    def run(self) -> dict[str, float]:
        """Times and memory as ratios to the step without privacy (above 1: privacy costs more).

        Time: medians of steps that alternate in one process. Memory: how far a process's peak resident memory during
        a step rises above the loaded model (by a page at least), each kind of step in a process of its own; on a GPU,
        what its tensors take there. Returns
        time_ratio, memory_ratio, opacus_time_ratio, opacus_memory_ratio, and of our step step_s and step_bytes.
        """
        steps = {name: self._step(name) for name in _KINDS}
        times: dict[str, list[float]] = {name: [] for name in _KINDS}
        for repetition in range(_WARM_UP + self.repetitions):
            for name, step in steps.items():
                seconds = _seconds(step)
                if repetition >= _WARM_UP:
                    times[name].append(seconds)
        steps.clear()
        time_s = {name: statistics.median(measured) for name, measured in times.items()}
        # Not forked from this process, whose memory it would start from, but from one that has loaded the libraries.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
            memory = dict(zip(_KINDS, pool.map(self.peak_bytes, _KINDS), strict=True))
        return {
            "time_ratio": time_s["private"] / time_s["plain"],
            "memory_ratio": memory["private"] / memory["plain"],
            "opacus_time_ratio": time_s["opacus"] / time_s["plain"],
            "opacus_memory_ratio": memory["opacus"] / memory["plain"],
            "step_s": time_s["private"],
            "step_bytes": float(memory["private"]),
        }

    def peak_bytes(self, kind: str) -> int:
        """How far this process's peak memory rises in two steps above what it held before them."""
        step = self._step(kind)
        device = None if self.device == PROCESSORS else self.device
        before = peak_memory.forget_peak(device)
        step()
        step()
        return max(peak_memory.peak_bytes(device) - before, resource.getpagesize())

    def _step(self, kind: str) -> Step:
        model = LanguageModel.load(self.folder, self.lora, seed=0, device=self.device)
        rng = np.random.default_rng(0)
        batch: list[Example] = [
            random_example(model, self.max_tokens, self.max_tokens, rng) for _ in range(self.batch_size)
        ]
        return _KINDS[kind](model, batch)


def step_line(figures: dict[str, float]) -> str:
    """The figures of ``StepBench.run`` as one line."""
    return (
        f"private step: {figures['time_ratio']:.2f} x the time and {figures['memory_ratio']:.2f} x the memory of the "
        f"same step without privacy (Opacus's hooks: {figures['opacus_time_ratio']:.2f} x and "
        f"{figures['opacus_memory_ratio']:.2f} x)"
    )


def _plain(model: LanguageModel, batch: list[Example]) -> Step:
    """Autograd's sum over the batch, without privacy."""
    optimizer = torch.optim.SGD(model.trained.values(), lr=_LEARNING_RATE)

    def step() -> None:
        token_ids, labels = model.stack(batch)
        sequence_losses(model.logits(token_ids), labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _private(model: LanguageModel, batch: list[Example]) -> Step:
    """Ours, whole: gradients, clipping, integers, sum, exact noise, step."""
    lattice = Lattice(dimension=model.layout.dimension, clipping_norm=_CLIPPING_NORM)
    stddev = site_noise_stddev(noise_multiplier=_NOISE_MULTIPLIER, sensitivity=lattice.sensitivity, honest_shares=1)
    sampler = GradSampler(model, [Shape(tokens=len(batch[0].token_ids), batch=len(batch))])
    dp_sgd = DpSgd(sampler=sampler, lattice=lattice, mechanism=RoundedGaussian(noise_stddev=stddev))
    optimizer = make_optimizer("sgd", learning_rate=_LEARNING_RATE)

    def step() -> None:
        adapter = model.get_adapter()
        change = dp_sgd.train(
            lambda: [[example] for example in batch],
            adapter=adapter,
            optimizer=optimizer,
            steps=1,
            denominator=float(len(batch)),
        )
        model.set_adapter((adapter + change).astype(np.float32))

    return step


def _opacus(model: LanguageModel, batch: list[Example]) -> Step:
    """Opacus's hooks and optimiser, its noise from torch's generator."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model.module.train()  # the hooks do nothing otherwise; no dropout is left in the model
    module = GradSampleModule(model.module, loss_reduction="mean", strict=False)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.trained.values(), lr=_LEARNING_RATE),
        noise_multiplier=_NOISE_MULTIPLIER,
        max_grad_norm=_CLIPPING_NORM,
        expected_batch_size=len(batch),
    )

    def step() -> None:
        token_ids, labels = model.stack(batch)
        losses = sequence_losses(module(input_ids=token_ids, use_cache=False).logits, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on hooks whose inputs need no gradient, which is intended
            losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


_KINDS: dict[str, Callable[[LanguageModel, list[Example]], Step]] = {
    "plain": _plain,
    "private": _private,
    "opacus": _opacus,
}


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter() - start
