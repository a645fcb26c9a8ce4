"""DP-SGD in one place: what a federation is compared with. The steps are the study's own; no protocol is run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

from ....client.site.assembly import sampler_of
from ....client.training.cohort import Cohort
from ....client.training.dp_sgd import DpSgd
from ....client.training.grad_samples import GradSampler
from ....common.crypto.identity import Identity
from ....common.data.tokenisation import EvaluationSet
from ....common.errors import StudyError
from ....common.model.adapter import Vector
from ....common.model.devices import PROCESSORS
from ....common.model.example import Example
from ....common.model.language_model import LanguageModel
from ....common.privacy.mechanism import Mechanism, NoNoise, RoundedGaussian, site_noise_stddev
from ....common.study.completion import complete_study, draw_cap_of
from ....common.study.first_adapter import first_adapter_of, with_pinned_adapter
from ....common.study.manifest import Manifest, new_manifest
from ....common.study.study import Study
from ...plan.pooled import trained_in_one_place
from ...simulation.config import RecordFiles
from ...simulation.site_data import read_all

Units = Sequence[Sequence[Example]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Central:
    """A study's sites in one process, whose adapter starts as the federation's ``first`` and is stepped as there.

    The noise is that of the claim, or ``noise_over_claimed`` times it. *No guarantee is made here*: the patients are
    synthetic, and nothing is entered in a ledger.
    """

    base: Path
    manifest: Manifest
    model: LanguageModel
    first: Vector
    sampler: GradSampler
    units: dict[str, Units]
    evaluation: EvaluationSet
    noise_over_claimed: float = 1.0

    @classmethod
    def open(cls, study: Study, records: RecordFiles, *, seed: int, devices: Sequence[str] = (PROCESSORS,)) -> Self:
        """Reads the records, and draws the frozen part of the adapter from ``seed``; computes on ``devices``.

        Raises StudyError where the step would correct for the noise of a federation, or count its public records, and
        where a first adapter is unfit.
        """
        if study.data.public is not None:
            raise StudyError(
                "data.public, in one place",
                why="of public records each site adds some, and in one place there are no sites",
                fix="leave pooled and alone out of --ways, or data.public out of the settings",
            )
        if study.training.noise_correction != "none":
            raise StudyError(
                f"training.noise_correction = {study.training.noise_correction}, in one place",
                why="the study's step takes off the noise of a federation's sums, and in one place there is less",
                fix="leave pooled and alone out of --ways, or noise_correction out of the settings",
            )
        first = first_adapter_of(study)
        data = read_all(
            study,
            records.cohorts,
            records.evaluation,
            folder=None,
            opted_out={},
            similar=None,
            progress=lambda done: None,
        )
        model = LanguageModel.load(
            data.base, study.model.lora, seed=seed, precision=study.model.precision, device=devices[0]
        )
        if first is not None:
            first.put_on(model)
        completed = complete_study(study)
        manifest = new_manifest(
            with_pinned_adapter(completed),
            site_keys={site.name: Identity.generate().public_key for site in study.sites},
            server_key=Identity.generate().public_key,
            model=model,
            model_sha256=model.folder_sha256,
        )
        return cls(
            base=data.base,
            manifest=manifest,
            model=model,
            first=model.get_adapter(),
            sampler=sampler_of(completed, model, devices=devices, base=data.base),
            units={name: found.units(study) for name, found in data.sites.items()},
            evaluation=data.tokenisation.evaluation_set(data.evaluation, positions=model.positions),
        )

    def mechanism(self, attempt: int) -> Mechanism:
        """The noise of a sum that no other site adds to: z Δ where it is the claim's (Abadi et al. 2016, alg. 1)."""
        if not self.manifest.study.privacy.noise:
            return NoNoise()
        return RoundedGaussian(
            noise_stddev=site_noise_stddev(
                noise_multiplier=self.manifest.noise_multiplier(attempt) * self.noise_over_claimed,
                sensitivity=self.manifest.lattice.sensitivity,
                honest_shares=1,
            )
        )

    def train(self, sites: Sequence[str], tell: Callable[[str], None] = lambda line: None) -> Vector:
        """The adapter float32 [d] after the study's rounds, on the units of ``sites`` alone; each round is told."""
        manifest = self.manifest
        study = manifest.study
        cohort = Cohort(list(chain.from_iterable(self.units[site] for site in sites)))
        cap = draw_cap_of(study, max_units=sum(map(manifest.max_units, sites)), delta=manifest.delta)

        def draw() -> list[tuple[Example, ...]]:
            return cohort.draw(
                sampling_probability=study.privacy.sampling_probability,
                records_per_unit=study.data.records_per_unit,
                cap=cap,
            )

        return trained_in_one_place(
            manifest,
            lambda attempt: DpSgd(sampler=self.sampler, lattice=manifest.lattice, mechanism=self.mechanism(attempt)),
            draw,
            first=self.first,
            sites=sites,
            tell=lambda round_: tell(
                f"{sites[0]} and {len(sites) - 1} more: round {round_} of {study.training.rounds}"
            ),
        )
