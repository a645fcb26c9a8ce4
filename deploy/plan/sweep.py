"""A sweep: settings tried on records that need no protection, each with the noise that the study would have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Self

import numpy as np

from ...client.site.assembly import sampler_of
from ...client.training.cohort import Cohort
from ...client.training.dp_sgd import DpSgd
from ...common.crypto.identity import Identity
from ...common.data.preparation import Preparation
from ...common.data.record import Record
from ...common.data.records import read_records
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError, StudyError
from ...common.model.base_folder import vocabulary_size_of
from ...common.model.language_model import LanguageModel
from ...common.privacy.events import MIN_NOISE_MULTIPLIER
from ...common.privacy.mechanism import RoundedGaussian
from ...common.schema import known
from ...common.sources.source import DataSource
from ...common.study.completion import complete_study, default_max_units
from ...common.study.first_adapter import first_adapter_of, with_pinned_adapter
from ...common.study.manifest import Manifest, new_manifest
from ...common.study.study import DataSection, Study
from ...server.report.utility import published
from ..builtin.models import base_model_folder
from ..builtin.spares import with_setting
from .grid import Grid, shown
from .pooled import trained_in_one_place
from .trial import Tell, Unit

# Of so many patients of the public records one is held out, to rank by.
_HELD_OUT: Final = 5
_LEAST_PATIENTS: Final = 2 * _HELD_OUT


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting and what came of it: ``study`` is complete, but for the noise, which follows.

    ``before`` and ``after`` are the perplexities of the held-out records, of each run.
    """

    setting: Mapping[str, Any]
    study: Study
    noise_multiplier: float
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """The geometric mean over the runs; infinite where one of them came to no figure."""
        return math.exp(fmean(map(math.log, self.after)))

    @property
    def spread(self) -> float | None:
        """The standard error of its logarithm; None of one run, or where it is infinite."""
        if len(self.after) < 2 or math.isinf(self.perplexity):
            return None
        return stdev(map(math.log, self.after)) / math.sqrt(len(self.after))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All settings, the best first, trained on so many units of the ``source`` and ranked by so many patients."""

    source: str
    trained: int
    held_out: int
    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The setting of the lowest perplexity."""
        return self.tried[0]

    @property
    def chosen(self) -> str:
        """In words, what was chosen and on what."""
        best = self.best
        return f"Chosen by a sweep over {len(self.tried)} settings on {self.source}: {shown(best.setting)}."

    @property
    def figures(self) -> dict[str, Any]:
        """All of it as JSON has it, without the studies; of a perplexity that is infinite, None."""
        tried = [
            {
                "setting": dict(one.setting),
                "noise_multiplier": one.noise_multiplier,
                "noise_stages": [
                    {"from_attempt": attempt, "factor": factor} for attempt, factor in one.study.privacy.noise_stages
                ],
                "before": list(map(published, one.before)),
                "after": list(map(published, one.after)),
            }
            for one in self.tried
        ]
        return {"source": self.source, "trained": self.trained, "held_out": self.held_out, "tried": tried}


def sweep(study: Study, grid: Grid, public_text: Path, *, tell: Tell = lambda doing: None) -> Sweep:
    """Train the study with every setting of ``grid`` on ``public_text``, and rank by perplexity on what is held out.

    Each setting is calibrated for the study's ε, as it would be, also where noise has stages: those that the study does
    not state follow from a setting's rounds. A step's mean gradient carries the noise that it would carry with every
    site present, also where there are fewer units than the study has. Public are the records: *no
    guarantee is made here*, and none is needed. A setting's runs have each another A, another draw and other noise; A
    is the same for all settings.

    Raises DataError, ModelError, PrivacyError and StudyError.
    """
    privacy = study.privacy
    is_fixed = not privacy.noise or privacy.noise_multiplier is not None
    if is_fixed or privacy.trust != "distributed" or study.data.public is not None:
        raise StudyError(
            "--sweep for a study of local trust, without noise or with a stated noise_multiplier, or with data.public",
            why="settings are compared at one ε, from which each one's noise follows, and in one place there are no "
            "sites that step by themselves, or add public records",
            fix="state target_epsilon and distributed trust, or train each setting with `grandrounds simulate`",
        )
    # All are judged before one is trained.
    settings = [(setting, with_setting(study, setting)) for setting in grid.settings]
    for one in {changed.model.first_adapter: changed for _, changed in settings}.values():
        first_adapter_of(one)  # each can be read
    tell(f"calibrating the noise of {len(settings)} settings")
    complete = [complete_study(changed) for _, changed in settings]
    read: dict[DataSection, _Public] = {}
    for one in complete:
        if one.data not in read:
            tell(f"reading {public_text.name}")
            read[one.data] = _Public.read(public_text, one)
    tell(f"judging {len(settings)} settings")
    for _, alike in groupby(complete, key=lambda one: one.model):  # a grid's models vary slowest
        model = None
        for one in alike:
            model = model or read[one.data].model(one, seed=0)
            read[one.data].manifest(one, model)
    tried = []
    for number, ((setting, changed), completed) in enumerate(zip(settings, complete, strict=True)):
        public = read[completed.data]
        perplexities = []
        for seed in range(grid.repeats):
            doing = f"run {number * grid.repeats + seed + 1} of {grid.runs}, {shown(setting)}"
            tell(doing)
            before, after = public.run(completed, seed)
            perplexities.append((before, after))
            tell(f"{doing}: perplexity {before:.4g} → {after:.4g}")
        tried.append(
            Tried(
                setting=setting,
                study=changed,
                noise_multiplier=known(completed.privacy.noise_multiplier),
                before=tuple(before for before, _ in perplexities),
                after=tuple(after for _, after in perplexities),
            )
        )
    return Sweep(
        source=public_text.name,
        trained=len(public.units),
        held_out=public.held_out_patients,
        tried=tuple(sorted(tried, key=lambda one: one.perplexity)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Public:
    """Public records as a setting's study reads them: the units to train on, and the records that are held out."""

    base: Path
    tokenisation: Tokenisation
    units: Sequence[Unit]
    held_out: Sequence[Record]
    held_out_patients: int

    @classmethod
    def read(cls, path: Path, study: Study) -> Self:
        """Of every fifth patient the records are held out. Raises DataError and ModelError."""
        base = base_model_folder(study.model.name)
        tokenisation = Tokenisation.load(str(base), vocabulary_size=vocabulary_size_of(base))
        source, data = DataSource.of(path), study.data
        preparation = Preparation(
            tokenisation=tokenisation, max_tokens=data.max_tokens, overlap=data.overlap, similar="different"
        )
        store = preparation.of_source(source).store
        patients = len(store.patients)
        if patients < _LEAST_PATIENTS:
            raise DataError(
                f"{path.name} has {patients} patients",
                why=f"every {_HELD_OUT}th is held out, and a ranking by one of them is chance",
                fix=f"give the public records of {_LEAST_PATIENTS} or more",
            )
        numbers = np.arange(patients)
        is_held_out = numbers % _HELD_OUT == 0
        names = {store.patients[number] for number in numbers[is_held_out]}
        return cls(
            base=base,
            tokenisation=tokenisation,
            units=list(store.select(study.privacy.unit, numbers[~is_held_out], max_tokens=data.max_tokens)),
            held_out=[record for record in read_records(source, similar="different") if record.patient_id in names],
            held_out_patients=len(names),
        )

    def run(self, study: Study, seed: int) -> tuple[float, float]:
        """The perplexities of what is held out, before and after the rounds of a complete ``study``; A is ``seed``'s.

        Raises ModelError, PrivacyError and StudyError.
        """
        model = self.model(study, seed=seed)
        manifest = self.manifest(study, model)
        sites = [site.name for site in manifest.study.sites]
        start = model.get_adapter()
        examples = self.tokenisation.evaluation_set(self.held_out, positions=model.positions).examples
        before = model.perplexity(examples, start).whole
        cohort = Cohort(self.units)
        sampler = sampler_of(study, model)

        def dp_sgd_of(attempt: int) -> DpSgd:
            # All of it in one place: what is left in a sum over all sites, each of which showed what more there was.
            variance = manifest.variance_in_sum(sites, shown=sites, attempt=attempt)
            noise = RoundedGaussian(noise_stddev=math.isqrt(variance - 1) + 1)
            return DpSgd(sampler=sampler, lattice=manifest.lattice, mechanism=noise)

        adapter = trained_in_one_place(
            manifest,
            dp_sgd_of,
            lambda: cohort.draw(
                sampling_probability=manifest.study.privacy.sampling_probability,
                records_per_unit=study.data.records_per_unit,
                cap=len(self.units),
            ),
            first=start,
            sites=sites,
            shown=sites,
            tell=lambda round_: None,
        )
        return before, model.perplexity(examples, adapter).whole

    def model(self, study: Study, *, seed: int) -> LanguageModel:
        """That of the study, with its first adapter or an A that is ``seed``'s. Raises ModelError and StudyError."""
        model = LanguageModel.load(self.base, study.model.lora, seed=seed, precision=study.model.precision)
        first = first_adapter_of(study)
        if first is not None:
            first.put_on(model)
        return model

    def manifest(self, study: Study, model: LanguageModel) -> Manifest:
        """That of a complete study, were the public units its own: a step's mean gradient has the noise it has there.

        As many units enter a step as in the study, or all there are: then there is as much less noise in their sum.
        Raises DataError, PrivacyError and StudyError.
        """
        privacy, units = study.privacy, len(self.units)
        planned = privacy.sampling_probability * study.total_nominal_units
        drawn = min(planned, units)
        noise_multiplier = known(privacy.noise_multiplier) * drawn / planned
        least = noise_multiplier * min((1.0, *(factor for _, factor in privacy.noise_stages)))
        if least < MIN_NOISE_MULTIPLIER or units < len(study.sites):
            raise DataError(
                f"{units} public {privacy.unit}s to train on, where a step of the study has {planned:.4g}",
                why="of so few, gradients vary more than the noise of the study, and rank the settings",
                fix=f"give public records of {math.ceil(planned)} or more besides those that are held out",
            )
        share, more = divmod(units, len(study.sites))
        sites = [
            site.model_copy(update={"nominal_units": of_it, "max_units": default_max_units(of_it)})
            for number, site in enumerate(study.sites)
            for of_it in [share + (number < more)]
        ]
        changed = privacy.model_copy(
            update={"noise_multiplier": noise_multiplier, "sampling_probability": drawn / units}
        )
        data = study.data.model_copy(update={"evaluation": "public"})
        return new_manifest(
            with_pinned_adapter(study).model_copy(update={"data": data, "privacy": changed, "sites": tuple(sites)}),
            site_keys={site.name: Identity.generate().public_key for site in sites},
            server_key=Identity.generate().public_key,
            model=model,
            model_sha256=model.folder_sha256,
        )
