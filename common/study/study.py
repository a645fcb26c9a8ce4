"""A study: what people write in study.toml, and what follows from it."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..crypto.identity import Hex32, Name
from ..privacy.clipping import Clipping
from ..privacy.events import LARGEST_FACTOR, LEAST_FACTOR, MAX_STAGES
from ..privacy.trust import Trust
from ..schema import LINE, Help, Option, Section, Spelt, Words, read_toml, validated
from ..secagg.parameters import default_threshold
from .about import AboutSection
from .builtin import with_tuned
from .model_section import ModelSection
from .training import TrainingSection

PublicFile = Annotated[str, Spelt(LINE, "needs a file of public records (.jsonl), in one line", 512)]
Probability = Annotated[float, Field(gt=0, le=1)]
Stage = Annotated[
    tuple[Annotated[int, Field(ge=2, le=200_000)], Annotated[float, Field(ge=LEAST_FACTOR, le=LARGEST_FACTOR)]],
    Field(strict=False),
]
PrivacyUnit = Literal["patient", "record"]
# From records of nobody to records that name people.
Sensitivity = Literal["synthetic", "public", "deidentified", "identifiable"]

# What follows where a study leaves it open.
DEFAULT_TARGET_EPSILON = 4.0
LARGEST_DEFAULT_DELTA = 5e-4

# The table of a study's file that is no part of the study.
SIMULATION = "simulation"

# Panels of the commands' help, in their order.
PANELS = MODEL, PRIVACY, TRAINING = ModelSection.panel, "Privacy", TrainingSection.panel


class DataSection(Section):
    """How a record becomes windows, each a training example, and how many of a unit's one step may read."""

    panel: ClassVar[str] = MODEL
    max_tokens: Annotated[
        int, Option("Tokens of a window; a longer record is several, each read by itself"), Field(ge=8, le=8192)
    ] = 384
    overlap: Annotated[
        int, Help("Tokens that a record's windows share: read again, and learnt once"), Field(ge=0, le=4096)
    ] = 0
    records_per_unit: Annotated[int, Option("Windows of a patient read in a step, at random"), Field(ge=1, le=64)] = 1
    evaluation: Annotated[
        Literal["synthetic", "public"] | None,
        Option("What your evaluation records are; nobody's records of care", name="evaluation-kind"),
    ] = None
    public: Annotated[
        PublicFile | None,
        Help(
            "Records of nobody who has to be protected, of which every site adds some to each step",
            example='"public.jsonl"',
        ),
    ] = None
    public_units: Annotated[
        int, Help("How many of their units a site adds to a step, at random"), Field(ge=0, le=100_000)
    ] = 0

    @model_validator(mode="after")
    def _mixed(self) -> Self:
        if (self.public is None) != (self.public_units == 0):
            raise ValueError("public_units: public records and how many of them enter a step are given together")
        return self


class PrivacySection(Section):
    """Who is protected, how much, and against whom."""

    panel: ClassVar[str] = PRIVACY
    unit: Annotated[PrivacyUnit, Option("Who is protected; record claims nothing of patients", name="privacy-unit")] = (
        "patient"
    )
    trust: Annotated[Trust, Option("Sites share the noise, or each adds all of it")] = "distributed"
    noise: Annotated[bool, Option("Without noise nothing is claimed", name="no-privacy", only="simulate")] = True
    target_epsilon: Annotated[
        float | None, Option("ε of the whole study", unset=f"{DEFAULT_TARGET_EPSILON:g}"), Field(ge=0.01, le=100)
    ] = None
    delta: Annotated[
        float | None,
        Option("Its δ", unset=f"a tenth of one over all units, at most {LARGEST_DEFAULT_DELTA:g}"),
        Field(gt=0, lt=0.1),
    ] = None
    noise_multiplier: Annotated[
        float | None, Help("Noise over sensitivity; instead of target_epsilon", example="1.2"), Field(gt=0, le=1000)
    ] = None
    noise_stages: Annotated[
        tuple[Stage, ...],
        Help("How the noise changes, by attempts: [[9, 0.5]] is half of the first one's from attempt 9 on"),
        Field(max_length=MAX_STAGES, strict=False),
    ] = ()
    sampling_probability: Annotated[Probability, Help("Of a unit, in each step; or units_per_step")] = 0.2
    clipping_norm: Annotated[
        float, Option("Largest norm of a unit's gradient; choose it from public data"), Field(ge=1e-6, le=1e6)
    ] = 0.5
    clipping: Annotated[
        Clipping,
        Help("norm cuts longer gradients to clipping_norm; auto brings each near it, whatever its length (AUTO-S)"),
    ] = "norm"
    corrupt_sites: Annotated[int, Option("Corrupt sites tolerated beside the server"), Field(ge=1, le=1000)] = 1
    sites_per_patient: Annotated[
        int, Option("Most sites that hold one patient; never checked"), Field(ge=1, le=1000)
    ] = 1


class SecaggSection(Section):
    """Secure aggregation: how many sites must answer, and in which integers sums are taken."""

    panel: ClassVar[str] = PRIVACY
    threshold: Annotated[int | None, Option("Sites that must answer", unset="two thirds"), Field(ge=2, le=1000)] = None
    modulus_bits: Annotated[Literal[16, 32] | None, Help("Of summed integers", unset="32; 16 under local trust")] = None
    update_range: Annotated[
        float, Help("Largest change of an entry in a round, under local trust"), Field(gt=0, le=1e6)
    ] = 1.0


class Site(Section):
    """A hospital in the roster; ``nominal_units`` is public or coarsely rounded, and never updated.

    ``max_units`` is a bound on its cohort that it states with room to spare, and that its own worker checks.
    ``records`` says in words what its records are, ``residency`` where they are kept. ``sha256`` is of the records
    themselves, and only for those that are no person's: whoever can guess a record could confirm it by its hash.
    ``largest_epsilon``, ``budget_epsilon`` and ``minimised``, the rules by which it takes something out of its records,
    are its own policy's, if it makes them public; it checks them on joining.
    """

    name: Annotated[Name, Help("The site's, here and in every command")]
    nominal_units: Annotated[int, Help("Public or coarsely rounded; never updated"), Field(ge=1, le=10**9)]
    max_units: Annotated[
        int | None,
        Help("More it will never train on; public, and never updated", unset="a quarter above nominal_units"),
        Field(ge=1, le=2 * 10**9),
    ] = None
    records: Annotated[Words | None, Help("What its records are, in its own words", example='"notes"')] = None
    sensitivity: Annotated[Sensitivity, Help("Of the records")] = "identifiable"
    residency: Annotated[Words | None, Help("Where they are kept, in its own words", example='"Oslo"')] = None
    sha256: Annotated[Hex32 | None, Help("Of records that are public or synthetic", example='"0123…"')] = None
    largest_epsilon: Annotated[
        float | None, Help("Most that its policy allows one study, if it makes that public", example="4.0"), Field(gt=0)
    ] = None
    budget_epsilon: Annotated[
        float | None, Help("Its patients' budget for all studies, if it makes that public", example="8.0"), Field(gt=0)
    ] = None

    minimised: Annotated[
        tuple[Words, ...] | None,
        Help(
            "Rules that its policy takes something out of records by, as client init says", example='["dates shifted"]'
        ),
        Field(max_length=20, strict=False),
    ] = None

    @model_validator(mode="after")
    def _reveals_nobody(self) -> Self:
        if self.max_units is not None and self.max_units < self.nominal_units:
            raise ValueError(f"max_units: {self.max_units} is below the {self.nominal_units} nominal units")
        if self.sha256 is not None and self.sensitivity not in ("synthetic", "public"):
            raise ValueError(
                f"sha256: a hash of {self.sensitivity} records is a release that no noise protects; "
                "leave it out, or say that they are synthetic or public"
            )
        return self


class Study(Section):
    """All parameters of one federated run, as people write them; ``complete_study`` fills in what follows.

    Only its sites must be named, three or more. On the built-in model, ``builtin.TUNED`` stands for what is left out.
    ``Study.model_validate`` reads the tables of a study.toml; it raises
    pydantic's ValidationError, which names each wrong field.

    >>> sites = [{"name": name, "nominal_units": 200} for name in ("north", "south", "west")]
    >>> study = Study.model_validate({"privacy": {"target_epsilon": 4.0}, "sites": sites})
    >>> study.total_nominal_units, study.training.rounds, study.privacy.trust
    (600, 4, 'distributed')
    """

    about: AboutSection = AboutSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    secagg: SecaggSection = SecaggSection()
    sites: tuple[Site, ...] = Field(min_length=3, max_length=1000, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _tuned(cls, given: Any) -> Any:
        return with_tuned(given)

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """The tables of a study by their names, without the roster."""
        return {
            name: field.annotation for name, field in cls.model_fields.items() if isinstance(field.annotation, type)
        }

    @property
    def total_nominal_units(self) -> int:
        """Nominal units of all sites."""
        return sum(site.nominal_units for site in self.sites)

    @property
    def threshold(self) -> int:
        """How many sites must answer: as stated, or what follows from their number."""
        return self.secagg.threshold or default_threshold(len(self.sites))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("sites: a site name occurs twice")
        if "server" in names:
            raise ValueError("sites: a site cannot be called 'server'")
        if self.privacy.sites_per_patient > len(self.sites):
            raise ValueError("privacy.sites_per_patient: above the number of sites")
        sites, corrupt, threshold = len(self.sites), self.privacy.corrupt_sites, self.threshold
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
        if self.privacy.trust == "local" and self.training.noise_correction != "none":
            raise ValueError(
                "training.noise_correction: under local trust sites step by themselves, and what becomes of the noise "
                "in their steps is not known"
            )
        if self.privacy.trust == "distributed" and self.secagg.modulus_bits == 16:
            raise ValueError("secagg.modulus_bits: distributed trust sums noisy integers and needs 32")
        layers = self.model.layers
        if layers is not None and layers[0] > layers[1]:
            raise ValueError(f"model.layers: {layers[0]} is above {layers[1]}; give the first and the last block")
        if 2 * self.data.overlap > self.data.max_tokens:
            raise ValueError(
                f"data.overlap: {self.data.overlap} is above half of the {self.data.max_tokens} tokens of a window, "
                "most of which would be read for nothing"
            )
        if self.privacy.delta is not None and self.privacy.delta > 1 / self.total_nominal_units:
            raise ValueError(
                f"privacy.delta: {self.privacy.delta:g} is above 1/{self.total_nominal_units} (one over all nominal units), "  # noqa: E501
                "which would allow a mechanism that publishes somebody's records outright"
            )
        self._check_stages()
        if not self.privacy.noise and (self.privacy.target_epsilon or self.privacy.noise_multiplier):
            raise ValueError("privacy.noise: off, so neither target_epsilon nor noise_multiplier can be promised")
        return self

    def _check_stages(self) -> None:
        """Raises ValueError for stages of noise that no attempt would have, or that nothing is claimed of."""
        privacy, attempts = self.privacy, self.training.max_attempts
        starts = [attempt for attempt, _ in privacy.noise_stages]
        if not starts:
            return
        if starts != sorted(set(starts)):
            raise ValueError(f"privacy.noise_stages: they begin with the attempts {starts}, which do not rise")
        if attempts is not None and starts[-1] > attempts:
            raise ValueError(
                f"privacy.noise_stages: one begins with attempt {starts[-1]}, and there are {attempts} "
                "(training.max_attempts)"
            )
        if not privacy.noise:
            raise ValueError("privacy.noise_stages: stages of noise, and privacy.noise is off")
        if privacy.trust == "local":
            raise ValueError(
                "privacy.noise_stages: under local trust each site adds all of the noise to each of its own steps, and "
                "what was spent is told by who paid most often, whatever the attempts; choose distributed trust"
            )


def read_study(path: Path | str) -> Study:
    """The study of a TOML file; raises StudyError that names the field."""
    return validated(Study, study_tables(Path(path)), source=Path(path))


def study_tables(path: Path) -> dict[str, Any]:
    """The tables of a study's TOML file, but for [simulation], which is for `simulate` alone. Raises StudyError."""
    return {name: table for name, table in read_toml(path).items() if name != SIMULATION}
