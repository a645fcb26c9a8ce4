"""What a private training step costs beside the same step without privacy, and beside Opacus's hooks and ghosts.

``python -m grandrounds.deploy.bench.steps.dp_step`` needs torch, transformers, peft, scipy and pydantic, and nothing of
a network, of signatures or of a terminal: where only those are, what else would be measured says that it is missing.
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, get_args

import torch
from torch import nn

from ....client.training.physical_batch import most_tokens
from ....client.training.rank_processes import start_ranks
from ....common.errors import GrandRoundsError, ModelError
from ....common.model.base_model import Precision
from ....common.model.devices import PROCESSORS
from ....common.model.language_model import LanguageModel
from ....common.model.lora import Lora
from ....common.study.study import Study
from ....common.system.processes import end_with_parent
from .. import peak_memory
from .kinds import KINDS, WITHOUT_CHECKPOINTING, Step, Task, draws_noise, private_on
from .random_models import PREFIX, random_model

PLAIN: Final = next(iter(KINDS))
# Floating-point operations a second of dense products with bfloat16 and with float32, by a GPU's name: datasheets.
_PEAKS: Final = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "A10G": (70e12, 31e12),
    "A10": (125e12, 31e12),
    "L4": (121e12, 30e12),
}

# What drawing noise loads: no memory of a step.
_OF_NOISE: Final = ("scipy.special", "cryptography.hazmat.primitives.ciphers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBench:
    """What is measured: one step over ``records`` random sequences of ``tokens``, each a unit of its own.

    ``model`` is a folder, or ``random:1b`` and the like (random_models.py); ``batch`` is how many are computed at a
    time, by every kind of step alike; 0 is what a site would choose, and no batch is left half empty. With several
    ``ranks``, our step is measured on so many devices, too: GPUs from the first on, or processes on processors.
    """

    model: str
    lora: Lora
    records: int = 6
    tokens: int = 64
    batch: int = 0
    precision: Precision = "float32"
    checkpointing: bool = False
    device: str = PROCESSORS
    ranks: int = 1
    repetitions: int = 3

    def run(self) -> dict[str, Any]:
        """Figures of each kind of step, ``kinds``, and what they are of.

        Of a kind: ``step_s``, the median of steps that alternate in one process; ``step_bytes``, how far memory rises
        in a step above the loaded model (a process's resident memory, by a page at least, each kind in a process of
        its own; on a GPU what tensors take there); both also as ratios to the step without privacy; ``tokens_per_s``;
        and on a known GPU ``utilisation`` (``model_flops`` over what its datasheet promises). Or ``failed``: why not.
        """
        if self.ranks > 1 and (self.checkpointing or self.model.startswith(PREFIX)):
            raise ModelError(
                "several ranks are measured on a model in a folder, without gradient checkpointing",
                why="each loads the model itself",
                fix="name a model's folder, or leave out --ranks or --checkpointing",
            )
        task = self._task()
        steps, failed = self._steps(task)
        time_s, bytes_ = self._measured(steps)
        steps.clear()
        if self.device == PROCESSORS:
            bytes_ = self._bytes_in_processes(list(time_s))
        flops = len(task.records) * model_flops(task.model, self.tokens)
        peak = _peak_of(self.device, self.precision)
        kinds: dict[str, dict[str, Any]] = {}
        for name in KINDS:
            if name in failed:
                kinds[name] = {"failed": failed[name]}
                continue
            kinds[name] = {
                "step_s": time_s[name],
                "step_bytes": bytes_[name],
                "tokens_per_s": len(task.records) * self.tokens / time_s[name],
                "utilisation": flops / time_s[name] / peak if peak else None,
            }
            if PLAIN in time_s:
                kinds[name]["time_ratio"] = time_s[name] / time_s[PLAIN]
                kinds[name]["memory_ratio"] = bytes_[name] / bytes_[PLAIN]
        if self.ranks > 1:
            step_s = self._seconds_on_ranks()
            tokens_per_s = len(task.records) * self.tokens / step_s
            kinds[f"private, {self.ranks} devices"] = {"step_s": step_s, "tokens_per_s": tokens_per_s}
            if PLAIN in time_s:
                kinds[f"private, {self.ranks} devices"]["time_ratio"] = step_s / time_s[PLAIN]
        return {
            "model": self.model if self.model.startswith(PREFIX) else Path(self.model).name,
            "parameters": _linear_parameters(task.model),
            "dimension": task.model.layout.dimension,
            "records": self.records,
            "tokens": self.tokens,
            "batch": task.batch,
            "precision": self.precision,
            "checkpointing": self.checkpointing,
            "device": _name_of(self.device),
            "noise": draws_noise(),
            "kinds": kinds,
        }

    def peak_bytes(self, kind: str) -> int:
        """How far this process's memory rises in a step above what it held with the model loaded.

        In a second step, since what the first one freed is still the process's, in pieces.
        """
        task = self._task()
        before = peak_memory.forget_peak()
        step = KINDS[kind](task)
        step()
        step()
        return max(peak_memory.peak_bytes() - before, resource.getpagesize())

    def _seconds_on_ranks(self) -> float:
        """The median seconds of our step on several devices, each of which has the whole base. Raises ModelError."""
        on_gpu = self.device != PROCESSORS
        ranks = start_ranks([f"cuda:{number}" if on_gpu else PROCESSORS for number in range(self.ranks)])
        task, threads = self._task(), torch.get_num_threads()
        step = private_on(ranks, task, base=Path(self.model), study=self._study(task.batch))
        try:
            times, _ = dataclasses.replace(self, device=PROCESSORS)._measured({"": step})  # whose answer is waited for
        finally:
            torch.set_num_threads(threads)
        return times[""]

    def _study(self, batch: int) -> Study:
        """A study of the same adapter, windows and physical batch."""
        lora = self.lora
        model = {"target_modules": lora.target_modules, "rank": lora.rank, "alpha": lora.alpha, "adapter": lora.kind}
        fields = {
            "model": {**model, "name": self.model, "precision": self.precision},
            "data": {"max_tokens": self.tokens},
            "training": {"physical_batch": batch},
            "sites": [{"name": name, "nominal_units": 100} for name in ("north", "south", "west")],
        }
        return Study.model_validate(fields)

    def _task(self) -> Task:
        if self.model.startswith(PREFIX):
            model = random_model(self.model, self.lora, precision=self.precision, device=self.device)
        else:
            model = LanguageModel.load(
                Path(self.model), self.lora, seed=0, precision=self.precision, device=self.device
            )
        if self.checkpointing:
            model.enable_gradient_checkpointing()
        most = max(1, min(most_tokens(model, self.tokens) // self.tokens, self.records))
        batch = self.batch or max(size for size in range(1, most + 1) if self.records % size == 0)
        return Task.random(model, records=self.records, tokens=self.tokens, batch=batch)

    def _steps(self, task: Task) -> tuple[dict[str, Step], dict[str, str]]:
        """Each kind's step after a first one, and why there is none of the others."""
        steps: dict[str, Step] = {}
        failed: dict[str, str] = {}
        for name, kind in KINDS.items():
            if "Opacus" in name and importlib.util.find_spec("opacus") is None:
                failed[name] = "opacus is not installed"
            elif self.checkpointing and name in WITHOUT_CHECKPOINTING:
                failed[name] = "not under gradient checkpointing"
            else:
                try:
                    step = kind(task.with_own_adapter())
                    step()
                    steps[name] = step
                except torch.OutOfMemoryError:
                    failed[name] = "out of memory"
        return steps, failed

    def _measured(self, steps: dict[str, Step]) -> tuple[dict[str, float], dict[str, int]]:
        """Each kind's median seconds, and on a GPU its most bytes above what is held between steps."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        bytes_ = dict.fromkeys(steps, 0)
        on_gpu = self.device != PROCESSORS
        for _ in range(self.repetitions):
            for name, step in steps.items():
                before = peak_memory.forget_peak(self.device) if on_gpu else 0
                start = time.perf_counter()
                step()
                if on_gpu:
                    torch.cuda.synchronize(self.device)
                    bytes_[name] = max(bytes_[name], peak_memory.peak_bytes(self.device) - before)
                times[name].append(time.perf_counter() - start)
        return {name: statistics.median(measured) for name, measured in times.items()}, bytes_

    def _bytes_in_processes(self, kinds: list[str]) -> dict[str, int]:
        # Not forked from this process, whose memory it would start from, but from one that has loaded the libraries.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([Task.__module__, *_OF_NOISE])
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent, max_tasks_per_child=1) as pool:
            return dict(zip(kinds, pool.map(self.peak_bytes, kinds), strict=True))


def model_flops(model: LanguageModel, tokens: int) -> float:
    """Operations that a forward and a backward pass over one sequence need, whatever is computed again.

    4·P·T for the P weights of frozen linear layers (a forward pass, and gradients of activations alone), 6·d·T for the
    d trained numbers, 12·L·w·T² for attention (as Chowdhery et al. 2022, appendix B, count it), of width w in L blocks.
    """
    config = model.module.config.get_text_config()
    attention = 12 * config.num_hidden_layers * config.hidden_size * tokens**2
    return float(tokens * (4 * _linear_parameters(model) + 6 * model.layout.dimension) + attention)


def step_table(figures: dict[str, Any]) -> str:
    """The figures of ``StepBench.run`` for people."""
    head = (
        f"{figures['model']}, {figures['precision']}, on {figures['device']}: {figures['records']} x "
        f"{figures['tokens']} tokens, {figures['batch']} at a time, {figures['dimension']:,} trained numbers"
        + (", activations computed again" if figures["checkpointing"] else "")
    )
    lines = [head, f"{'':24}{'step':>9}{'':>8}{'memory':>11}{'':>8}{'tokens/s':>10}{'FLOPs used':>12}"]
    for name, kind in figures["kinds"].items():
        if "failed" in kind:
            lines.append(f"{name:24}{kind['failed']}")
            continue
        ratios = [f"{kind[ratio]:.2f} x" if ratio in kind else "" for ratio in ("time_ratio", "memory_ratio")]
        used = f"{kind['utilisation']:.0%}" if kind.get("utilisation") else "unknown"
        memory = f"{kind['step_bytes'] / 2**20:>7,.0f} MiB" if "step_bytes" in kind else " " * 11
        lines.append(
            f"{name:24}{kind['step_s']:>7.3f} s{ratios[0]:>8}{memory}{ratios[1]:>8}"
            f"{kind['tokens_per_s']:>10,.0f}{used:>12}"
        )
    if not figures["noise"]:
        lines.append("no noise was drawn: its library (cryptography) is not installed")
    return "\n".join(lines)


def _linear_parameters(model: LanguageModel) -> int:
    """The weights of frozen linear layers, the head among them: what a token is multiplied by."""
    layers = [layer for name, layer in model.module.named_modules() if "lora_" not in name]
    linear = [layer.in_features * layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    of_gpt2 = [int(layer.weight.numel()) for layer in layers if type(layer).__name__ == "Conv1D"]
    return sum(linear) + sum(of_gpt2)


def _name_of(device: str) -> str:
    if device == PROCESSORS:
        return f"{torch.get_num_threads()} threads of processors"
    return str(torch.cuda.get_device_name(device))


def _peak_of(device: str, precision: Precision) -> float | None:
    if device == PROCESSORS:
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for known, peaks in _PEAKS.items() if known in name), None)
    return None if peaks is None else peaks[precision == "float32"]


def main() -> None:
    """The benchmark, where neither typer nor rich is."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="random:tiny", help="a model's folder, or random:1b, random:7b")
    parser.add_argument("--target-modules", default="all-linear", help="layers to adapt, comma-separated")
    parser.add_argument("--rank", type=int, default=16)
    for name in ("records", "tokens", "batch", "ranks", "repetitions"):
        parser.add_argument(f"--{name}", type=int, default=getattr(StepBench, name))
    parser.add_argument("--precision", choices=get_args(Precision), default=StepBench.precision)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default=StepBench.device)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    lora = lora_on(options.pop("target_modules"), rank=options.pop("rank"))
    as_json = options.pop("json")
    try:
        figures = StepBench(lora=lora, **options).run()
    except GrandRoundsError as error:
        sys.exit(str(error))
    print(json.dumps(figures) if as_json else step_table(figures))


def lora_on(target_modules: str, *, rank: int) -> Lora:
    """An adapter on layers as a command names them: ``all-linear``, or names between commas."""
    from ....common.model.target_layers import ALL_LINEAR

    return Lora(
        target_modules=ALL_LINEAR if target_modules == ALL_LINEAR else tuple(target_modules.split(",")), rank=rank
    )


if __name__ == "__main__":
    main()
