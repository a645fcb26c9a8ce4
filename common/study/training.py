"""How a study trains: its rounds, its server's optimiser and rates, and what is left of the rounds at the end."""

from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from ..model.optimizers import KnownNoise, NoiseCorrection, Optimizer, OptimizerName, make_optimizer
from ..schema import Help, Option, Section, known
from .rates import Averaging, Decay

# Attempts that fail have a reserve: a fifth of the rounds.
ATTEMPTS_PER_ROUND = 1.2

DEFAULT_LEARNING_RATE: Final = 0.05
LARGEST_LEARNING_RATE: Final = 100.0

# Each choice in the words of a report.
_CORRECTED: Final[dict[NoiseCorrection, str]] = {
    "none": "",
    "coordinate": ", each number's second moment without the noise's",
    "tensor": ", each tensor's second moment without the noise's",
}
_FALLS: Final[dict[Decay, str]] = {
    "none": "",
    "linear": ", which falls evenly",
    "cosine": ", which falls by a cosine",
    "inverse-sqrt": ", which falls as one over the root of the rounds",
}
_LEFT: Final[dict[Averaging, str]] = {
    "none": "",
    "mean": "the mean of the last {} rounds is left",
    "ema": "an average of the rounds is left, exponential and as old as a mean of {}",
}


class TrainingSection(Section):
    """The schedule of rounds and the optimisers; all of it public."""

    panel: ClassVar[str] = "Training"
    rounds: Annotated[int, Option("Steps of the shared adapter", panel=""), Field(ge=1, le=100_000)] = 4
    max_attempts: Annotated[
        int | None,
        Option("Attempts that the claim covers", unset=f"{ATTEMPTS_PER_ROUND} × rounds"),
        Field(ge=1, le=200_000),
    ] = None
    evaluations: Annotated[
        int, Help("Rounds after which the adapter is evaluated: evenly, and after the last"), Field(ge=1, le=1000)
    ] = 1
    optimizer: Annotated[OptimizerName, Help("The server's")] = "adam"
    learning_rate: Annotated[
        float | None,
        Option(
            "Of the server's optimiser",
            unset=f"{DEFAULT_LEARNING_RATE:g}; of sgd or disk on the built-in model 2.4, and less under more noise",
            example="2.4",
        ),
        Field(gt=0, le=LARGEST_LEARNING_RATE),
    ] = None
    noise_correction: Annotated[
        NoiseCorrection,
        Help("Of adam: the noise's known variance is taken off the second moments, each's or a tensor's together"),
    ] = "none"
    weight_decay: Annotated[
        float, Help("Times the learning rate: the share that a round takes off the adapter"), Field(ge=0, le=10)
    ] = 0.0
    rate_decay: Annotated[
        Decay, Help("Of the server's learning rate over the rounds, to nothing or as one over a root")
    ] = "none"
    warmup_rounds: Annotated[
        int, Help("First rounds, in which the server's learning rate rises to what it is"), Field(ge=0, le=99_999)
    ] = 0
    averaging: Annotated[
        Averaging, Help("What the study leaves: its last adapter, or an average of those after its rounds")
    ] = "none"
    averaged_rounds: Annotated[
        int, Help("How many last rounds a mean is of; an ema has the age of one of so many"), Field(ge=1, le=100_000)
    ] = 1
    beta1: Annotated[float, Help("Of adam; also the momentum of momentum"), Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Help("Of adam"), Field(ge=0, lt=1)] = 0.99
    filter_gain: Annotated[
        float,
        Help("Of disk: the weight of a new gradient in the estimate (κ); below 1 it filters, in many rounds"),
        Field(gt=0, le=1),
    ] = 0.7
    local_steps: Annotated[int, Option("Steps a site takes in a round, under local trust"), Field(ge=1, le=1000)] = 1
    local_optimizer: Annotated[OptimizerName, Help("The sites', under local trust")] = "sgd"
    local_learning_rate: Annotated[float, Help("Of the sites' optimiser"), Field(gt=0, le=100)] = 1.0
    physical_batch: Annotated[
        int | None,
        Option("Records computed at a time, for speed alone", unset="by each machine's memory"),
        Field(ge=1, le=1024),
    ] = None
    deadline_s: Annotated[
        float,
        Help("Of an exchange; who is later has dropped out; at least twice a measured answer_after_s"),
        Field(ge=1, le=604_800),
    ] = 600.0
    answer_after_s: Annotated[
        float | None,
        Help(
            "When every site's masked update leaves, whatever its draw; above what `client check` measures",
            unset="by the speed of the server that fixes the study",
            example="60.0",
        ),
        Field(gt=0, le=604_800),
    ] = None

    @property
    def steps_in_words(self) -> str:
        """How the server steps from a round's sum, and what it leaves of the rounds.

        >>> chosen = {"rate_decay": "linear", "warmup_rounds": 1, "averaging": "mean", "averaged_rounds": 2}
        >>> TrainingSection(optimizer="sgd", learning_rate=0.05, **chosen).steps_in_words
        'sgd; a learning rate of 0.05 (rounds of warm-up: 1), which falls evenly; the mean of the last 2 rounds is left'
        """
        rate = f"a learning rate of {known(self.learning_rate):g}"
        filtered = f" (κ = {self.filter_gain:g})" if self.optimizer == "disk" else ""
        rises = f" (rounds of warm-up: {self.warmup_rounds})" if self.warmup_rounds else ""
        return "; ".join(
            filter(
                None,
                (
                    self.optimizer + filtered + _CORRECTED[self.noise_correction],
                    rate + rises + _FALLS[self.rate_decay],
                    f"a weight decay of {self.weight_decay:g}" if self.weight_decay else "",
                    _LEFT[self.averaging].format(self.averaged_rounds),
                ),
            )
        )

    def server_optimizer(self, *, learning_rate: float, noise: KnownNoise | None = None) -> Optimizer:
        """The server's, at a rate of its schedule."""
        return self._optimizer(self.optimizer, learning_rate, noise)

    def site_optimizer(self) -> Optimizer:
        """A site's, under local trust."""
        return self._optimizer(self.local_optimizer, self.local_learning_rate)

    def _optimizer(self, name: OptimizerName, rate: float, noise: KnownNoise | None = None) -> Optimizer:
        return make_optimizer(
            name, learning_rate=rate, beta1=self.beta1, beta2=self.beta2, gain=self.filter_gain, noise=noise
        )

    @property
    def leaves_average(self) -> bool:
        """Whether what is left is kept beside the last adapter: an average, or the iterate that disk looks ahead of."""
        return self.averaging != "none" or self.optimizer == "disk"

    @property
    def evaluated_rounds(self) -> frozenset[int]:
        """The rounds after which the adapter is evaluated: ``evaluations`` of them, evenly, the last among them.

        >>> sorted(TrainingSection(rounds=20, evaluations=3).evaluated_rounds)
        [7, 14, 20]
        """
        count = min(self.evaluations, self.rounds)
        return frozenset(-(-self.rounds * number // count) for number in range(1, count + 1))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rounds, attempts, instant = self.rounds, self.max_attempts, self.answer_after_s
        if instant is not None and instant >= self.deadline_s:
            raise ValueError(
                f"answer_after_s: {instant:g} s, and an exchange ends after {self.deadline_s:g} s (deadline_s), "
                "so that every site would be too late"
            )
        if attempts is not None and attempts < rounds:
            raise ValueError(
                f"max_attempts: {attempts} attempts do not suffice for {rounds} rounds; "
                f"left out, it is {ATTEMPTS_PER_ROUND} × rounds"
            )
        if self.noise_correction != "none" and self.optimizer != "adam":
            raise ValueError(f"noise_correction: {self.optimizer} has no second moments; only adam has")
        if self.learning_rate is not None and self.weight_decay * self.learning_rate >= 1:
            raise ValueError(
                f"weight_decay: {self.weight_decay:g} at a learning rate of {self.learning_rate:g} would take off all "
                "of the adapter in each round"
            )
        if self.warmup_rounds >= rounds:
            raise ValueError(
                f"warmup_rounds: {self.warmup_rounds} of {rounds} rounds, so that the learning rate would never be "
                "what it was chosen to be"
            )
        if self.averaged_rounds > rounds or (self.averaging == "none") != (self.averaged_rounds == 1):
            raise ValueError(
                f"averaged_rounds: {self.averaged_rounds} of {rounds} rounds, averaging {self.averaging}; a mean and "
                "an ema are of 2 rounds or more, and of no more than there are; without, it is 1"
            )
        return self
