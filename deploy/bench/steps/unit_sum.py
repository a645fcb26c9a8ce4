"""What clip, integers, check, sum and noise cost beside the gradients of a synthetic stack of layers."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from ....client.training.dp_sgd import DpSgd
from ....client.training.grad_samples import GradSampler, Shape
from ....client.training.step_figures import StepFigures
from ....client.training.unit_sum import UnitSum
from ....common.model.devices import PROCESSORS
from ....common.model.language_model import LanguageModel
from .kinds import Task, lattice_of, mechanism_for
from .random_models import stacked_model

_REPETITIONS: Final = 3


@dataclass(frozen=True, kw_only=True)
class SumBench:
    """What is measured: units of one record of ``tokens`` each, one at a time, on layers that share one weight.

    So that memory stays small and work is that of a large model: of width 2,048 and rank 16, 40,000,000 trained numbers
    stand on 2.5 billion frozen ones.
    """

    dimension: int
    tokens: int
    width: int
    rank: int
    records: int
    device: str = PROCESSORS

    def run(self) -> dict[str, Any]:
        """Seconds, medians: of a record's gradient, of its unit in the sum, of noise alone, of whole steps.

        ``sum_ratio`` is the unit's to the gradient's; ``noise_hidden`` the share of the noise's time in which a step
        does not wait for it.
        """
        model = stacked_model(dimension=self.dimension, width=self.width, rank=self.rank, device=self.device)
        task = Task.random(model, records=self.records, tokens=self.tokens, batch=1)
        lattice = lattice_of(model)
        sampler = GradSampler(model, [Shape(self.tokens, 1)])
        mechanism = mechanism_for(lattice)
        steps: list[StepFigures] = []
        dp_sgd = DpSgd(sampler=sampler, lattice=lattice, mechanism=mechanism, observer=steps.append)
        total = UnitSum(lattice, model.device)
        gradients = sampler.gradients(task.records[:1])
        units = [[record] for record in task.records]

        def sum_up() -> None:
            total.add(gradients.clone())

        clone_s = self._seconds(model, gradients.clone)
        sum_s = self._seconds(model, sum_up) - clone_s
        noise_s = self._seconds(model, lambda: mechanism.add_noise(np.zeros(lattice.dimension, dtype=np.int64)))
        gradient_s = self._seconds(model, lambda: sampler.gradients(task.records[:1]))
        step_s = self._seconds(model, lambda: dp_sgd.release(lambda: units))
        waited_s = statistics.median(step.noise_s for step in steps)
        return {
            "dimension": lattice.dimension,
            "blocks": len(model.module.base_model.model.model.layers),
            "width": self.width,
            "tokens": self.tokens,
            "records": self.records,
            "gradient_s": gradient_s,
            "sum_s": sum_s,
            "sum_ratio": sum_s / gradient_s,
            "noise_s": noise_s,
            "step_s": step_s,
            "noise_hidden": 1 - waited_s / noise_s,
        }

    def _seconds(self, model: LanguageModel, work: Callable[[], object]) -> float:
        """The median of a few calls."""
        times = []
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            work()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def sum_lines(figures: dict[str, Any]) -> str:
    """The figures of ``SumBench.run`` as lines."""
    return (
        f"{figures['dimension']:,} trained numbers on {figures['blocks']} blocks of width {figures['width']:,}, "
        f"records of {figures['tokens']} tokens\n"
        f"a record's gradient: {figures['gradient_s']:.2f} s; clip, integers, check and sum: {figures['sum_s']:.3f} s, "
        f"{figures['sum_ratio']:.1%} of it\n"
        f"noise alone: {figures['noise_s']:.2f} s, of which a step of {figures['records']} records "
        f"({figures['step_s']:.2f} s) does not wait for {figures['noise_hidden']:.0%}"
    )
