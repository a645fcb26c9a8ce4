"""A study: what people write in study.toml, and what follows from it."""

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import StudyError
from .identity import Hex32, Name
from .language_model import Lora
from .optimizer import OptimizerName
from .privacy.events import SampledGaussianRelease, Schedule
from .privacy.mechanism import Trust, honest_shares
from .secagg.transcript import default_threshold

# Attempts that a schedule holds in reserve for rounds that fail: a fifth.
ATTEMPTS_PER_ROUND = 1.2
DEFAULT_TARGET_EPSILON = 4.0
WHY_STUDY = "every site signs these parameters, and the privacy claim is computed from them"

ModelT = TypeVar("ModelT", bound=BaseModel)
ValueT = TypeVar("ValueT")
# tomllib's memory grows with the square of the parts of a dotted key.
_MAX_TOML_BYTES = 1 << 18
_MAX_DOTS = 200
Probability = Annotated[float, Field(gt=0, le=1)]
# A line of text, without control characters and without those that turn its direction.
Words = Annotated[str, Field(pattern=r"^\P{C}+$", max_length=200)]
# From records of nobody to records that name people.
Sensitivity = Literal["synthetic", "public", "deidentified", "identifiable"]


class Section(BaseModel):
    """A part of a study: frozen; unknown fields and values of another type are refused, for "no" is not false."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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

    max_tokens: int = Field(default=64, ge=8, le=8192)
    records_per_unit: int = Field(default=1, ge=1, le=64)
    evaluation: Literal["synthetic", "public"] = "synthetic"


class PrivacySection(Section):
    """Who is protected, how much, and against whom."""

    unit: Literal["patient", "record"] = "patient"
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

    rounds: int = Field(default=20, ge=1, le=100_000)
    max_attempts: int | None = Field(default=None, ge=1, le=200_000)
    optimizer: OptimizerName = "adam"
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    local_steps: int = Field(default=1, ge=1, le=1000)
    local_optimizer: OptimizerName = "sgd"
    local_learning_rate: float = Field(default=1.0, gt=0, le=100)
    physical_batch: int = Field(default=4, ge=1, le=1024)
    deadline_s: float = Field(default=600.0, ge=1, le=604_800)


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
    """All parameters of one federated run, as people write them; ``complete_study`` fills in what follows."""

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


def complete_study(study: Study) -> Study:
    """Fill in what the study leaves open: δ, attempts, threshold, modulus, and noise for the target (or its ε).

    Calibration covers all ``max_attempts`` and the stated overlap. Raises StudyError or PrivacyError.
    """
    # Imported here: it loads dp_accounting, which reading a study does not need.
    from .privacy.accountant import calibrate_noise_multiplier, epsilon

    privacy, training, secagg = study.privacy, study.training, study.secagg
    distributed = privacy.trust == "distributed"
    threshold = secagg.threshold or default_threshold(len(study.sites))
    attempts = training.max_attempts or math.ceil(ATTEMPTS_PER_ROUND * training.rounds)
    delta = privacy.delta or default_delta(study.total_nominal_units)
    secagg = secagg.model_copy(
        update={"threshold": threshold, "modulus_bits": secagg.modulus_bits or (32 if distributed else 16)}
    )
    # Refuses a threshold too low for the corrupt sites before any time goes into calibration.
    honest_shares(trust=privacy.trust, threshold=threshold, corrupt_sites=privacy.corrupt_sites)
    filled: dict[str, Any] = {"delta": delta}
    if privacy.noise and privacy.noise_multiplier is None:
        filled["target_epsilon"] = DEFAULT_TARGET_EPSILON if privacy.target_epsilon is None else privacy.target_epsilon
        filled["noise_multiplier"] = calibrate_noise_multiplier(
            target_epsilon=filled["target_epsilon"],
            delta=delta,
            sampling_probability=privacy.sampling_probability,
            steps=attempts * training.local_steps,
            trust=privacy.trust,
            sites_per_patient=privacy.sites_per_patient,
        )
    elif privacy.noise_multiplier is not None:
        spent = epsilon(
            schedule_of(study, attempts=attempts, noise_multiplier=privacy.noise_multiplier), delta=delta
        ).epsilon
        filled["target_epsilon"] = privacy.target_epsilon or math.ceil(spent * 1e4) / 1e4
        if spent > filled["target_epsilon"]:
            raise StudyError(
                f"privacy.noise_multiplier = {privacy.noise_multiplier:g} costs ε = {spent:.4f} over {attempts} "
                f"attempts, above privacy.target_epsilon = {filled['target_epsilon']:g}",
                why=WHY_STUDY,
                fix="leave one of the two out, and it follows from the other",
            )
    return validated(
        Study,
        {
            **study.model_dump(),
            "privacy": {**privacy.model_dump(), **filled},
            "training": {**training.model_dump(), "max_attempts": attempts},
            "secagg": secagg.model_dump(),
        },
    )


def known(value: ValueT | None) -> ValueT:
    """A field that a complete study has: states to the type checker what ``complete_study`` or a Manifest saw to."""
    assert value is not None  # noqa: S101
    return value


def schedule_of(study: Study, *, attempts: int, noise_multiplier: float) -> Schedule:
    """Every release that ``attempts`` allow."""
    event = SampledGaussianRelease(
        sampling_probability=study.privacy.sampling_probability,
        noise_multiplier=noise_multiplier,
        trust=study.privacy.trust,
        sites_per_patient=study.privacy.sites_per_patient,
    )
    return Schedule(event=event, count=attempts * study.training.local_steps)


def default_delta(total_nominal_units: int) -> float:
    """A tenth of one over all nominal units, rounded down to one digit.

    >>> default_delta(120)
    0.0008
    """
    bound = 1 / (10 * total_nominal_units)
    power = math.floor(math.log10(bound))
    return float(f"{math.floor(bound / 10.0**power + 1e-9)}e{power}")


def read_study(path: Path | str) -> Study:
    """The study of a TOML file; raises StudyError that names the field."""
    return validated(Study, read_toml(Path(path)))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises StudyError with the place of a syntax error."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TOML_BYTES + 1).decode("utf-8")
        if len(text) > _MAX_TOML_BYTES or any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
            raise ValueError("it is larger than any study, or names something by far too many parts")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # tomllib lets integers and nesting raise what they like
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{path} cannot be read: {reason}", why=WHY_STUDY, fix="correct the file or its name"
        ) from error


def read_settings(model: type[ModelT], path: Path, *, made_by: str) -> ModelT:
    """A folder's settings, from its TOML file, which the command ``made_by`` writes.

    Raises StudyError that names the field, or says that this is no such folder.
    """
    try:
        return validated(model, read_toml(path))
    except StudyError as error:
        missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        raise StudyError(
            error.what if str(path) in error.what else f"{path}: {error.what}",
            why="keys, data and programs are where it says; none of it is guessed",
            fix=f"give the folder that `{made_by}` made" if missing else error.fix,
        ) from error


def validated(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """``model`` from untrusted fields; raises StudyError that names each wrong field and its value."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise StudyError(_problems(error), why=WHY_STUDY, fix="correct the named fields") from error


def _problems(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problems.append(f"{place}: no such field")
        elif place and item["type"] != "missing":
            problems.append(f"{place} = {_shown(item['input'])}: {message}")
        else:
            problems.append(f"{place}: {message}".removeprefix(": "))
    return "; ".join(problems)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "(too large to show)"
    return text if len(text) <= 200 else f"{text[:200]}…"
