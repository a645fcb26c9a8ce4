"""Bugs of every kind that a private training step can have, each planted in the real code, and what finds it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pytest
import torch

from grandrounds.client.training import dp_sgd, grad_samples
from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.step_watch import StepWatch
from grandrounds.client.training.unit_sum import UnitSum
from grandrounds.client.training.update import SiteUpdate
from grandrounds.client.worker import attempt as attempt_module
from grandrounds.client.worker import worker as worker_module
from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.crypto.csprng import Stream, fresh_key
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.privacy import mechanism as mechanism_module
from grandrounds.common.privacy.mechanism import NoNoise, RoundedGaussian
from grandrounds.common.privacy.rounded_gaussian import add_rounded_gaussian
from grandrounds.common.secagg.masks import add_masks
from grandrounds.common.study import manifest as manifest_module
from grandrounds.common.study.completion import schedule_of
from support.secagg.lacking import KeepsItsSecrets
from support.tape.neighbours import SEED, Kind, Pair, run
from support.tape.paths import PATHS, SITE, Path

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
# Rows of gradients [units, d] and the clipping norm -> what is added of them [any, d].
Clipped = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A bug, the path on which it is looked for, and all that the tape then says is wrong."""

    plant: Plant
    path: Path
    found: tuple[Kind, ...]

    def run(self, *, seed: bytes = SEED) -> Pair:
        """The path's two runs with the bug in both."""
        with pytest.MonkeyPatch.context() as patch:
            self.plant(patch)
            return run(self.path, seed=seed)


def _adds(clipped: Clipped) -> Plant:
    """Units are clipped in another way, and their integers' norm is not checked."""

    def add(self: UnitSum, gradients: torch.Tensor) -> torch.Tensor:
        norms = gradients.double().norm(dim=1)
        sound = gradients.double()[torch.isfinite(norms)]
        scaled = clipped(sound, self._lattice.clipping_norm) * self._lattice.scale
        self._total.add_(scaled.round().sum(dim=0).to(self._total.dtype))
        return norms

    return lambda patch: patch.setattr(UnitSum, "add", add)


def _not_clipped(rows: torch.Tensor, norm: float) -> torch.Tensor:
    return rows * 10  # tiny models have short gradients


def _clipped_by_the_largest_entry(rows: torch.Tensor, norm: float) -> torch.Tensor:
    return rows * (norm / rows.abs().amax(dim=1, keepdim=True).clamp(min=norm / 100))


def _clipped_after_adding(rows: torch.Tensor, norm: float) -> torch.Tensor:
    total = rows.sum(dim=0, keepdim=True)
    return total * (norm / total.norm().clamp(min=norm))


def _rounded_after_adding(rows: torch.Tensor, norm: float) -> torch.Tensor:
    return (rows * (norm / rows.norm(dim=1, keepdim=True).clamp(min=norm))).sum(dim=0, keepdim=True)


def _clipped_by_record(patch: Patch) -> None:
    """Each record of a unit counts as a unit would."""
    real = DpSgd._flights

    def flights(self: DpSgd, units: Any) -> Any:
        return real(self, [[example] for unit in units for example in unit])

    patch.setattr(DpSgd, "_flights", flights)


def _draws(change: Callable[[Cohort[Any], list[Any]], list[Any]]) -> Plant:
    def plant(patch: Patch) -> None:
        real = Cohort.draw
        patch.setattr(Cohort, "draw", lambda self, **options: change(self, real(self, **options)))

    return plant


def _skips_short_records(cohort: Cohort[Any], drawn: list[Any]) -> list[Any]:
    return [unit for unit in drawn if any(len(example.token_ids) > 16 for example in unit)]


def _counts_the_last_twice(cohort: Cohort[Any], drawn: list[Any]) -> list[Any]:
    return [*drawn, *drawn[-1:]]


def _keeps_its_draw(cohort: Cohort[Any], drawn: list[Any]) -> list[Any]:
    kept: list[Any] = vars(cohort).setdefault("_kept", drawn)
    return kept


def _draws_a_fixed_number(patch: Patch) -> None:
    """The half of the units with the smallest keys, as a shuffled batch has: whoever is there takes another's place."""

    def draw(self: Cohort[Any], *, sampling_probability: float, records_per_unit: int, cap: int) -> list[Any]:
        keys = Stream.fresh().words(len(self._units))
        chosen = np.argsort(keys)[: round(sampling_probability * len(keys))]
        return [tuple(self._units[number][:records_per_unit]) for number in chosen]

    patch.setattr(Cohort, "draw", draw)


def _caps_by_content(patch: Patch) -> None:
    """As many units as have so many tokens."""
    real = Cohort.draw

    def draw(self: Cohort[Any], *, cap: int, **options: Any) -> list[Any]:
        tokens = sum(len(example.token_ids) for unit in self._units for example in unit)
        return real(self, cap=max(1, tokens // 40), **options)

    patch.setattr(Cohort, "draw", draw)


def _public_units_fill_up(patch: Patch) -> None:
    """As many units in each step, whoever is there: public ones are left out where private ones are drawn."""
    real = SiteUpdate._draw
    patch.setattr(SiteUpdate, "_draw", lambda self: real(self)[:5])


def _noise_from_the_data(patch: Patch) -> None:
    def release(self: DpSgd, draw: Any) -> Any:
        total = self._sum_or_zero(draw, StepWatch())
        noise = np.zeros(self.lattice.dimension, dtype=self.integers)
        add_rounded_gaussian(noise, round(self.mechanism.noise_stddev), hashlib.sha256(total.tobytes()).digest())
        return noise + total.view(noise.dtype)

    patch.setattr(DpSgd, "release", release)


def _noise_from_a_fixed_key(patch: Patch) -> None:
    patch.setattr(
        mechanism_module,
        "add_rounded_gaussian",
        lambda total, stddev, key=bytes(32): add_rounded_gaussian(total, stddev, key),
    )


def _half_the_noise(patch: Patch) -> None:
    patch.setattr(
        mechanism_module,
        "add_rounded_gaussian",
        lambda total, stddev, key=None: add_rounded_gaussian(total, stddev // 2, key),
    )


def _no_base_noise(patch: Patch) -> None:
    """Of base and layers, the base is forgotten: enough where all last, and nothing is left where layers come off."""
    patch.setattr(RoundedGaussian, "add_noise", lambda self, total: fresh_key() and None)


def _a_site_without_noise(patch: Patch) -> None:
    real = SiteUpdate._dp_sgd

    def step(self: SiteUpdate, mechanism: Any) -> DpSgd:
        return real(self, NoNoise() if self.name == SITE else mechanism)

    patch.setattr(SiteUpdate, "_dp_sgd", step)


def _divides_by_the_draw(patch: Patch) -> None:
    real = DpSgd.train

    def train(self: DpSgd, draw: Any, *, denominator: float, **options: Any) -> Any:
        drawn: list[int] = []

        def counted() -> Any:
            units = draw()
            drawn.append(len(units))
            return units

        change = real(self, counted, denominator=denominator, **options)
        return change * (denominator / max(1, sum(drawn) / len(drawn)))

    patch.setattr(DpSgd, "train", train)


def _a_failure_empties_its_batch(patch: Patch) -> None:
    def gradients(self: DpSgd, examples: Sequence[Any]) -> torch.Tensor:
        try:
            return self.sampler.gradients(examples)
        except Exception:
            return torch.full((len(examples), self.lattice.dimension), torch.nan)

    patch.setattr(DpSgd, "_readable", lambda self, unit: list(unit))
    patch.setattr(DpSgd, "_isolated_gradients", gradients)


def _a_failure_empties_the_step(patch: Patch) -> None:
    """As one that is met while the draw is read did."""

    def readable(self: DpSgd, unit: Any) -> list[Any]:
        for example in unit:
            self.sampler.model.check_tokens(example.token_ids, example.labels)
        return list(unit)

    patch.setattr(DpSgd, "_readable", readable)


def _a_failure_ends_the_answer(patch: Patch) -> None:
    _a_failure_empties_the_step(patch)
    patch.setattr(DpSgd, "_sum_or_zero", lambda self, draw, watch: self.sum_units(draw(), watch))


def _a_failure_is_logged(patch: Patch) -> None:
    real = DpSgd._readable

    def readable(self: DpSgd, unit: Any) -> list[Any]:
        found = real(self, unit)
        if not found:
            dp_sgd._log.warning("a unit was left out")
        return found

    patch.setattr(DpSgd, "_readable", readable)


def _losses_over_the_batch(patch: Patch) -> None:
    """As transformers' own ``labels=``: each record's loss is divided by the targets of the whole batch."""
    real = grad_samples.loss_gradients

    def loss_gradients(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = (labels[:, 1:] != NO_LOSS).sum(dim=1)
        shares = targets / targets.sum().clamp(min=1)
        return real(logits, labels) * shares[:, None, None]

    patch.setattr(grad_samples, "loss_gradients", loss_gradients)


def _tells(answer: Callable[[Callable[[int], bytes], int, int], bytes]) -> Plant:
    """A figure of the step's records goes into the ``answer``: of who masks by a charge counter, it, and the figure."""

    def plant(patch: Patch) -> None:
        real, mask, figure = DpSgd._sum_or_zero, ClientAttempt.mask, [0]

        def sum_or_zero(self: DpSgd, draw: Any, watch: Any) -> Any:
            total = real(self, draw, watch)
            figure[0] = int(np.abs(total).sum())
            return total

        patch.setattr(DpSgd, "_sum_or_zero", sum_or_zero)
        patch.setattr(
            ClientAttempt, "mask", lambda self, update, counter: answer(partial(mask, self, update), counter, figure[0])
        )

    return plant


def _a_mask_is_left_in(patch: Patch) -> None:
    """A site adds the mask that it shares with the next one twice."""

    def added(vector: Any, *, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
        add_masks(vector, plus=[*plus, *plus[1:]], minus=minus)

    patch.setattr(attempt_module, "add_masks", added)


def _a_link_too_early(patch: Patch) -> None:
    """The advert has the first link of the noise's chain in place of the last: all layers' keys follow from it."""
    real = ClientAttempt.advertise

    def advertise(self: ClientAttempt) -> bytes:
        self._links[self._parameters.threshold] = next(iter(self._links.values()))
        return real(self)

    patch.setattr(ClientAttempt, "advertise", advertise)


def _noise_by_the_round(patch: Patch) -> None:
    """Each attempt of the study is of its first round."""
    patch.setattr(ClientAttempt, "serial", property(lambda self: 1))


def _keeps_its_secrets(patch: Patch) -> None:
    patch.setattr(KeepsItsSecrets, "written", {})
    patch.setattr(worker_module, "ClientAttempt", KeepsItsSecrets)


def _claims(**wrong: Any) -> Plant:
    def plant(patch: Patch) -> None:
        def claimed(privacy: Any, *, attempts: int, **options: Any) -> Any:
            schedule = schedule_of(privacy, attempts=wrong.get("attempts", attempts), **options)
            q = wrong.get("sampling_probability", schedule.event.sampling_probability)
            return replace(schedule, event=replace(schedule.event, sampling_probability=q))

        patch.setattr(manifest_module, "schedule_of", claimed)

    return plant


SHORT, SEVERAL = PATHS["a short record in the midst of others"], PATHS["records of two buckets"]
LAST, STUDY = PATHS["more records than a step reads"], PATHS["a study to its end, of one companion"]
FAILING = PATHS["a unit that has a token that there is not"]
HALF, RETRY = (
    PATHS["half of the units are drawn, in each of six attempts"],
    PATHS["an attempt that fails, and its retry"],
)
LOCAL, STAGED = PATHS["local trust, two steps"], PATHS["a retry under less noise"]

BUGS: Final[dict[str, Bug]] = {
    "clipping is forgotten": Bug(plant=_adds(_not_clipped), path=SHORT, found=("unit", "bound", "noise")),
    "clipped by the largest entry": Bug(
        plant=_adds(_clipped_by_the_largest_entry), path=SHORT, found=("unit", "bound")
    ),
    "clipped after adding": Bug(plant=_adds(_clipped_after_adding), path=SHORT, found=("unit",)),
    "clipped by record and not by unit": Bug(plant=_clipped_by_record, path=SEVERAL, found=("unit", "bound")),
    "rounded after adding": Bug(plant=_adds(_rounded_after_adding), path=SHORT, found=("unit",)),
    "a unit is counted twice": Bug(plant=_draws(_counts_the_last_twice), path=LAST, found=("unit", "bound")),
    "a draw skips short records": Bug(plant=_draws(_skips_short_records), path=SHORT, found=("unit",)),
    "a draw of a fixed number": Bug(plant=_draws_a_fixed_number, path=HALF, found=("unit",)),
    "a draw is reused in a retry": Bug(plant=_draws(_keeps_its_draw), path=HALF, found=("unit",)),
    "a cap that depends on content": Bug(plant=_caps_by_content, path=SHORT, found=("draw",)),
    "losses are divided by the batch's targets": Bug(plant=_losses_over_the_batch, path=SHORT, found=("unit", "bound")),
    "a failure empties its batch": Bug(plant=_a_failure_empties_its_batch, path=FAILING, found=("unit",)),
    "a failure empties the step": Bug(plant=_a_failure_empties_the_step, path=FAILING, found=("log", "unit", "bound")),
    "a failure ends the answer": Bug(plant=_a_failure_ends_the_answer, path=FAILING, found=("message", "draw")),
    "a failure is logged": Bug(plant=_a_failure_is_logged, path=FAILING, found=("log",)),
    "public units fill up a step": Bug(
        plant=_public_units_fill_up, path=PATHS["public records beside"], found=("unit", "bound")
    ),
    "noise from the data": Bug(plant=_noise_from_the_data, path=SHORT, found=("draw", "unit", "bound")),
    "noise from a fixed key": Bug(plant=_noise_from_a_fixed_key, path=SHORT, found=("draw",)),
    "half the noise": Bug(plant=_half_the_noise, path=SHORT, found=("noise",)),
    "the base of the noise is forgotten": Bug(plant=_no_base_noise, path=SHORT, found=("draw",)),
    "a site forgets its noise": Bug(plant=_a_site_without_noise, path=SHORT, found=("draw", "noise")),
    "divided by the number drawn": Bug(plant=_divides_by_the_draw, path=LOCAL, found=("message",)),
    "a loss is sent": Bug(  # in a field that is there, which may be any number that rises
        plant=_tells(lambda mask, counter, loss: mask(counter + loss)), path=STUDY, found=("message",)
    ),
    "a message grows with the data": Bug(
        plant=_tells(lambda mask, counter, loss: mask(counter) + bytes(loss % 97)), path=STUDY, found=("message",)
    ),
    "a mask is left in": Bug(plant=_a_mask_is_left_in, path=STUDY, found=("sum",)),
    "the secret of a layer is shown early": Bug(plant=_a_link_too_early, path=STUDY, found=("secret",)),
    "secrets are kept for a retry": Bug(plant=_keeps_its_secrets, path=RETRY, found=("branch", "reuse")),
    "noise by the round and not by the attempt": Bug(plant=_noise_by_the_round, path=STAGED, found=("noise", "sum")),
    "the claim counts rounds for attempts": Bug(plant=_claims(attempts=1), path=SHORT, found=("claim",)),
    "the claim is of a smaller sample": Bug(plant=_claims(sampling_probability=0.25), path=HALF, found=("claim",)),
}
