"""The ways of training that are compared, and one run: a way, an ε, and on whose patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ....common.errors import StudyError
from ....common.privacy.noise_layers import noise_over_claim
from ....common.privacy.trust import Trust
from ....common.study.completion import learning_rate_of
from ....common.study.study import Study
from ...builtin.patients import Split
from ...simulation.config import read_simulation
from ...simulation.settings import NO_DROPOUT, Simulation

# All patients at one site, whose noise is that of the claim and no more · the same with as much noise as a federation's
# sums have · sites that share the noise · sites that each add all of it · each site by itself · sites that clip and add
# no noise · sites that do neither.
Way = Literal["pooled", "pooled-noisier", "distributed", "local", "alone", "noise-off", "no-privacy"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)
NOISY: Final = frozenset[Way](("pooled", "pooled-noisier", "distributed", "local", "alone"))
CENTRAL: Final = frozenset[Way](("pooled", "pooled-noisier", "alone"))

# What a benchmark takes from a study's file; sites, ε, trust and noise are what it compares.
SECTIONS: Final = ("model", "data", "training", "secagg")
COMPARED: Final = frozenset(("target_epsilon", "noise_multiplier", "noise", "trust"))
# Times the clipping norm is as good as none. Were it larger, integers would be too coarse for most gradients.
_UNCLIPPED: Final = 32.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all runs that are compared share: synthetic patients, where they are, and the frozen part of the adapter.

    ``patients`` are those of all sites; ``seed`` draws them, and the adapter. Privacy's randomness has no seed.
    """

    sites: int
    patients: int
    split: Split
    seed: int

    def __post_init__(self) -> None:
        """Raises StudyError where sites could not be of one size."""
        if self.patients % self.sites:
            raise StudyError(
                f"{self.patients} patients at {self.sites} sites",
                why="all sites are of one size, so that nothing but the way of training differs",
                fix=f"choose a multiple of {self.sites}",
            )

    def read(self, tables: Mapping[str, Any]) -> tuple[Study, Simulation]:
        """The study of these sites, with what the ``tables`` of a study's file say of training, and where records are.

        Sites, ε, noise and trust are not taken from there. Raises StudyError.
        """
        privacy = tables.get("privacy", {})
        if isinstance(privacy, Mapping):  # what is no table is refused with the rest
            privacy = {name: value for name, value in privacy.items() if name not in COMPARED}
        simulation = {
            "builtin_sites": self.sites,
            "builtin_patients": self.patients // self.sites,
            "builtin_split": self.split,
            "builtin_seed": self.seed,
            "dropouts": (NO_DROPOUT,),
        }
        fields = {name: tables[name] for name in SECTIONS if name in tables}
        return read_simulation({**fields, "privacy": privacy, "simulation": simulation})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way of training in one case; ``epsilon`` is None where nothing is claimed."""

    way: Way
    epsilon: float | None
    case: Case

    def __str__(self) -> str:
        """In words."""
        case = self.case
        claim = "" if self.epsilon is None else f" ε={self.epsilon:g}"
        return f"{self.way}{claim}, {case.sites} sites, {case.patients} patients ({case.split}), seed {case.seed}"

    def study(self, of_case: Study) -> Study:
        """The study of this run: all ways have the model and schedule that the case's has.

        And its rate, which, where nobody states one, is that of distributed trust at this ε, or without noise.
        """
        privacy = of_case.privacy.model_copy(update={"target_epsilon": self.epsilon, "noise": self.epsilon is not None})
        if self.epsilon is None:
            privacy = privacy.model_copy(update={"noise_stages": ()})
        rate = learning_rate_of(of_case.model_copy(update={"privacy": privacy}))
        if self.way == "local":  # which has no stages
            privacy = privacy.model_copy(update={"trust": "local", "noise_stages": ()})
        if self.way == "no-privacy":
            privacy = privacy.model_copy(update={"clipping_norm": _UNCLIPPED * privacy.clipping_norm})
        training = of_case.training.model_copy(update={"learning_rate": rate})
        return of_case.model_copy(update={"privacy": privacy, "training": training})

    def noise_over_claimed(self, study: Study) -> float | None:
        """The noise in a sum that no site is missing from, over what its ε is claimed for."""
        if self.epsilon is None:
            return None
        if self.way in ("pooled", "alone"):
            return 1.0
        return noise_over_claimed(study, "local" if self.way == "local" else "distributed")


def noise_over_claimed(study: Study, trust: Trust) -> float:
    """As rows have it of a study's sites: of three decimals."""
    sites = len(study.sites)
    over = noise_over_claim(
        sites, trust=trust, sites=sites, threshold=study.threshold, corrupt_sites=study.privacy.corrupt_sites
    )
    return round(over, 3)
