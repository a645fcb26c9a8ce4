"""A study: what people write in study.toml, and what follows from it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..crypto.identity import Hex32, Name
from ..model.language_model import Lora
from ..model.optimizers import OptimizerName
from ..privacy.mechanism import Trust
from ..schema import Section, Words, read_toml, validated
from ..secagg.parameters import default_threshold

Probability = Annotated[float, Field(gt=0, le=1)]
PrivacyUnit = Literal["patient", "record"]
# From records of nobody to records that name people.
Sensitivity = Literal["synthetic", "public", "deidentified", "identifiable"]


# Tuples are not strict: TOML and JSON have lists alone. What stands in them is as strict as the rest.
class ModelSection(Section):
    """The base model and the adapter trained on it."""

    name: str = Field(default="builtin", min_length=1, max_length=512)
    adapter: Literal["ffa", "lora"] = "ffa"
    target_modules: tuple[str, ...] = Field(default=("v_proj",), min_length=1, max_length=64, strict=False)
    rank: int = Field(default=4, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0, le=4096)

    @property
    def lora(self) -> Lora:
        """The adapter, as the language model is loaded with it."""
        return Lora(kind=self.adapter, target_modules=self.target_modules, rank=self.rank, alpha=self.alpha)


class DataSection(Section):
    """How a record becomes one training example, and how many of a unit's records one step may read."""

    max_tokens: int = Field(default=384, ge=8, le=8192)
    records_per_unit: int = Field(default=1, ge=1, le=64)
    evaluation: Literal["synthetic", "public"] = "synthetic"


class PrivacySection(Section):
    """Who is protected, how much, and against whom."""

    unit: PrivacyUnit = "patient"
    trust: Trust = "distributed"
    noise: bool = True
    target_epsilon: float | None = Field(default=None, ge=0.01, le=100)
    delta: float | None = Field(default=None, gt=0, lt=0.1)
    noise_multiplier: float | None = Field(default=None, gt=0, le=1000)
    sampling_probability: Probability = 0.2
    clipping_norm: float = Field(default=0.5, ge=1e-6, le=1e6)
    corrupt_sites: int = Field(default=1, ge=1, le=1000)
    sites_per_patient: int = Field(default=1, ge=1, le=1000)


class TrainingSection(Section):
    """The schedule of rounds and the optimisers; all of it public."""

    rounds: int = Field(default=4, ge=1, le=100_000)
    max_attempts: int | None = Field(default=None, ge=1, le=200_000)
    evaluations: int = Field(default=1, ge=1, le=1000)
    optimizer: OptimizerName = "adam"
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    local_steps: int = Field(default=1, ge=1, le=1000)
    local_optimizer: OptimizerName = "sgd"
    local_learning_rate: float = Field(default=1.0, gt=0, le=100)
    physical_batch: int = Field(default=2, ge=1, le=1024)
    deadline_s: float = Field(default=600.0, ge=1, le=604_800)

    @property
    def evaluated_rounds(self) -> frozenset[int]:
        """The rounds after which the adapter is evaluated: ``evaluations`` of them, evenly, the last among them.

        >>> sorted(TrainingSection(rounds=20, evaluations=3).evaluated_rounds)
        [7, 14, 20]
        """
        count = min(self.evaluations, self.rounds)
        return frozenset(-(-self.rounds * number // count) for number in range(1, count + 1))


class SecaggSection(Section):
    """Secure aggregation: how many sites must answer, and in which integers sums are taken."""

    threshold: int | None = Field(default=None, ge=2, le=1000)
    modulus_bits: Literal[16, 32] | None = None
    update_range: float = Field(default=1.0, gt=0, le=1e6)


class Site(Section):
    """A hospital in the roster; ``nominal_units`` is public or coarsely rounded, and never updated.

    ``records`` says in words what its records are, ``residency`` where they are kept. ``sha256`` is of the records
    themselves, and only for those that are no person's: whoever can guess a record could confirm it by its hash.
    """

    name: Name
    nominal_units: int = Field(ge=1, le=10**9)
    records: Words | None = None
    sensitivity: Sensitivity = "identifiable"
    residency: Words | None = None
    sha256: Hex32 | None = None

    @model_validator(mode="after")
    def _reveals_nobody(self) -> Self:
        if self.sha256 is not None and self.sensitivity not in ("synthetic", "public"):
            raise ValueError(
                f"sha256: a hash of {self.sensitivity} records is a release that no noise protects; "
                "leave it out, or say that they are synthetic or public"
            )
        return self


class Study(Section):
    """All parameters of one federated run, as people write them; ``complete_study`` fills in what follows.

    Only its sites must be named, three or more. ``Study.model_validate`` reads the tables of a study.toml; it raises
    pydantic's ValidationError, which names each wrong field.

    >>> sites = [{"name": name, "nominal_units": 200} for name in ("north", "south", "west")]
    >>> study = Study.model_validate({"privacy": {"target_epsilon": 4.0}, "sites": sites})
    >>> study.total_nominal_units, study.training.rounds, study.privacy.trust
    (600, 20, 'distributed')
    """

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    secagg: SecaggSection = SecaggSection()
    sites: tuple[Site, ...] = Field(min_length=3, max_length=1000, strict=False)

    @property
    def total_nominal_units(self) -> int:
        """Nominal units of all sites."""
        return sum(site.nominal_units for site in self.sites)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("sites: a site name occurs twice")
        if "server" in names:
            raise ValueError("sites: a site cannot be called 'server'")
        if self.privacy.sites_per_patient > len(self.sites):
            raise ValueError("privacy.sites_per_patient: above the number of sites")
        sites, corrupt = len(self.sites), self.privacy.corrupt_sites
        threshold = self.secagg.threshold or default_threshold(sites)
        if threshold > sites:
            raise ValueError(f"secagg.threshold: {threshold} sites must answer, but there are {sites}")
        if 2 * threshold <= sites + corrupt:
            raise ValueError(
                f"secagg.threshold: {threshold} of {sites} sites is too low where {corrupt} may be corrupt: with the "
                "server they could put one site's update together unless 2 * threshold > sites + corrupt_sites"
            )
        if self.privacy.trust == "distributed" and self.training.local_steps != 1:
            raise ValueError(
                "training.local_steps: distributed trust takes one step an attempt, "
                "because no single site holds enough noise for a second"
            )
        if self.privacy.trust == "distributed" and self.secagg.modulus_bits == 16:
            raise ValueError("secagg.modulus_bits: distributed trust sums noisy integers and needs 32")
        attempts = self.training.max_attempts
        if attempts is not None and attempts < self.training.rounds:
            raise ValueError("training.max_attempts: below the number of rounds")
        if self.privacy.delta is not None and self.privacy.delta > 1 / self.total_nominal_units:
            raise ValueError(
                f"privacy.delta: {self.privacy.delta:g} is above 1/{self.total_nominal_units} (one over all nominal units), "  # noqa: E501
                "which would allow a mechanism that publishes somebody's records outright"
            )
        if not self.privacy.noise and (self.privacy.target_epsilon or self.privacy.noise_multiplier):
            raise ValueError("privacy.noise: off, so neither target_epsilon nor noise_multiplier can be promised")
        return self


def read_study(path: Path | str) -> Study:
    """The study of a TOML file; raises StudyError that names the field."""
    return validated(Study, read_toml(Path(path)))
