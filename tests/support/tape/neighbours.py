"""What two recorded neighbours may differ in, and whatever else they do."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from grandrounds.common.model.example import Example
from grandrounds.common.privacy.composition import least_epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.schema import known
from support.study.federation import is_noise_of
from support.study.numpy_lattice import integers_of
from support.tape.paths import ELSEWHERE, PUBLIC_UNITS, READ, SITE, SITES, Path, Unit
from support.tape.recording import Recording, Released, record
from support.tape.tape import Tape

# What is wrong: where a difference shows, or what is no noise or no secret.
Kind = Literal["draw", "unit", "bound", "noise", "sum", "message", "branch", "log", "state", "secret", "reuse", "claim"]
# What each says where it is found.
MEANING: Final[dict[Kind, str]] = {
    "draw": "randomness is drawn otherwise than the sampler's definition says, or than without the unit",
    "unit": "the release moves by something else than the unit's own integers",
    "bound": "the release moves by more than Δ",
    "noise": "what a site releases beside its units' integers is no noise of the deviation σ",
    "sum": "what is unmasked beside the units' integers is no noise of the deviation that is claimed",
    "message": "a message differs though the releases are the same",
    "branch": "a site's protocol takes another line",
    "log": "a log has another line",
    "state": "a site's disk holds other bytes",
    "secret": "a message holds a secret",
    "reuse": "two draws, noises or secrets are the same",
    "claim": "the claim's ε is less than what all attempts of the study cost",
}
SEED: Final = b"a tape"
_NOISE_KEY: Final = "grandrounds.common.privacy.rounded_gaussian.add_rounded_gaussian"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A difference that must not be, in words without content."""

    kind: Kind
    words: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A path run without its unit and, under the same releases, with it."""

    path: Path
    without: Recording
    neighbour: Recording

    def findings(self) -> list[Finding]:
        """All that is wrong; nothing where the release moves by the unit's integers and all else is the same."""
        return [Finding(kind=kind, words=words) for kind, words in self._found()]

    @property
    def moved(self) -> float:
        """By how much the unit moved a release, at most, over Δ."""
        pairs = zip(self.without.released, self.neighbour.released, strict=False)
        return max(_norm(_difference(one, other)) for one, other in pairs) / self.without.manifest.lattice.sensitivity

    def _found(self) -> Iterator[tuple[Kind, str]]:
        yield from self._what_is_shown()
        yield from self._what_is_drawn()
        yield from self._what_is_released()
        for recording in (self.without, self.neighbour):
            yield from _secrets_in_messages(recording)
            yield from _what_repeats(recording)
        yield from _claim_of(self.without)

    def _what_is_shown(self) -> Iterator[tuple[Kind, str]]:
        one, other = self.without, self.neighbour
        if len(one.said) != len(other.said):
            yield "message", f"{len(one.said)} and {len(other.said)} messages"
        for before, after in zip(one.said, other.said, strict=False):
            if (before.site, before.request, before.answer) != (after.site, after.request, after.answer):
                yield "message", f"{after.site} and the server at {before.exchange}"
                break
        if one.tape.lines != other.tape.lines:
            pairs = enumerate(zip(one.tape.lines, other.tape.lines, strict=False))
            place = next((n for n, (a, b) in pairs if a != b), -1)
            yield "branch", "{}:{}".format(*other.tape.lines[place])
        if one.tape.logged != other.tape.logged:
            yield "log", f"{len(one.tape.logged)} and {len(other.tape.logged)} lines"
        for site in one.states:
            if one.states[site] != other.states[site]:
                yield "state", site

    def _what_is_drawn(self) -> Iterator[tuple[Kind, str]]:
        one, other = self.without.tape, self.neighbour.tape
        for purpose in sorted({*one.reads, *other.reads}):
            if one.reads[purpose] != other.reads[purpose]:
                yield "draw", f"{purpose}: {len(one.reads[purpose])} and {len(other.reads[purpose])} reads"
        if self.without.manifest.study.privacy.noise:
            keys = {site: len(one.reads[f"{site}: {_NOISE_KEY}"]) for site in SITES}
            releases = {site: sum(released.site == site for released in self.without.released) for site in SITES}
            if keys != releases:
                yield "draw", f"{sum(keys.values())} keys for the noise of {sum(releases.values())} releases"
        for name in (*one.beside, *other.beside):
            yield "draw", f"the generator of {name}, which is not the operating system's"

    def _what_is_released(self) -> Iterator[tuple[Kind, str]]:
        one, other = self.without, self.neighbour
        try:
            before, after = _Expected(self.path, one), _Expected(self.path, other)
        except (LookupError, ValueError):
            yield "draw", "a sample takes other coins than its definition says"
            return
        if len(one.released) != len(other.released) or any(
            a.site != b.site or a.adapter.tobytes() != b.adapter.tobytes() or a.integers.shape != b.integers.shape
            for a, b in zip(one.released, other.released, strict=False)
        ):
            yield "unit", "releases of other sites, of other lengths, at other adapters, or fewer"
            return
        yield from self._by_how_much(before, after)
        yield from _noise_of(one, before)
        yield from _sums_of(one, before)

    def _by_how_much(self, before: "_Expected", after: "_Expected") -> Iterator[tuple[Kind, str]]:
        lattice = self.without.manifest.lattice
        most = lattice.sensitivity * (2 if before.cut else 1)  # where one more is read, another may not be
        for number, (a, b) in enumerate(zip(self.without.released, self.neighbour.released, strict=True)):
            difference = _difference(a, b)
            due = after.totals[number] - before.totals[number] if before.cut else after.owns[number]
            if not np.array_equal(difference, due):
                yield "unit", f"release {number}, of {a.site}"
            if _norm(difference) > most:
                yield "bound", f"release {number}, of {a.site}: {_norm(difference) / lattice.sensitivity:.2f} Δ"


def run(path: Path, *, seed: bytes = SEED) -> Pair:
    """A path's two runs on one tape."""
    without = record(path, path.companions, Tape(seed=seed, gap=(SITE, path.place, len(path.companions))))
    neighbour = record(path, path.cohort, Tape(seed=seed), given=without.released)
    return Pair(path=path, without=without, neighbour=neighbour)


class _Expected:
    """What each release of a run is without noise, by the definitions: sampler, lattice and mean said once more."""

    # Gradients by model and adapter, of records that stay where they are.
    _known: ClassVar[dict[tuple[str, bytes], dict[int, tuple[Example, NDArray[np.float32]]]]] = {}

    def __init__(self, path: Path, recording: Recording) -> None:
        self._path = path
        self._lattice = recording.manifest.lattice
        self._nothing = np.zeros(self._lattice.dimension, dtype=np.int64)
        self.cut = False
        units = {**ELSEWHERE, SITE: path.cohort if recording.tape.gap is None else path.companions}
        taken = {site: iter(samples) for site, samples in recording.tape.coins.items()}
        # What the unit that one neighbour lacks adds, and all units: int64 [d] each, in the order of the releases.
        self.owns: list[NDArray[np.int64]] = []
        self.totals = [self._total(released, units[released.site], taken, recording) for released in recording.released]
        if any(next(samples, None) is not None for samples in taken.values()):
            raise ValueError("samples that nothing was released of")

    def _total(
        self,
        released: Released,
        units: Sequence[Unit],
        taken: dict[str, Iterator[list[NDArray[np.uint64]]]],
        recording: Recording,
    ) -> NDArray[np.int64]:
        manifest, samples = recording.manifest, taken[released.site]
        cap, probability = manifest.draw_cap(released.site), manifest.study.privacy.sampling_probability
        self._path.sampler.model.set_adapter(released.adapter)
        self._adapter = released.adapter.tobytes()
        added = self._sample(units, next(samples, []), cap, probability)
        own = sum((integers for unit, integers in added if unit is self._path.unit), self._nothing)
        if self._path.public:
            added += self._sample(self._path.public, next(samples, []), PUBLIC_UNITS, 1.0)
        self.owns.append(own)
        return sum((integers for _, integers in added), self._nothing)

    def _sample(
        self, units: Sequence[Unit], given: Sequence[NDArray[np.uint64]], cap: int, probability: float
    ) -> list[tuple[Unit, NDArray[np.int64]]]:
        """The units of a sample, with what each adds, by the coins that it was given."""
        calls = iter(given)
        coins = _call(calls, len(units))
        drawn = [unit for unit, coin in zip(units, coins, strict=True) if int(coin) < math.floor(probability * 2**64)]
        if len(drawn) > cap:
            self.cut = self.cut or units is not self._path.public
            drawn = [drawn[place] for place in np.argsort(_call(calls, len(drawn)))[:cap]]
        added = []
        for unit in drawn:
            chosen = np.argsort(_call(calls, len(unit)))[:READ] if len(unit) > READ else range(len(unit))
            added.append((unit, self._integers(unit, chosen)))
        if next(calls, None) is not None:
            raise ValueError("coins of a sample that it does not need")
        return added

    def _integers(self, unit: Unit, chosen: Iterable[int]) -> NDArray[np.int64]:
        """A unit's integers, from each record's gradient alone in its shape; zeros where anything of it fails."""
        try:
            records = sorted((unit[place] for place in chosen), key=lambda example: len(example.token_ids))
            rows = [self._gradient(example) for example in records]
        except Exception:
            return self._nothing
        mean = np.zeros(self._lattice.dimension, dtype=np.float32)
        for row in rows:  # in float32, one after another
            mean += row / np.float32(len(rows))
        return integers_of(self._lattice, mean)

    def _gradient(self, example: Example) -> NDArray[np.float32]:
        sampler = self._path.sampler
        sampler.shape_of(example)
        sampler.model.check_tokens(example.token_ids, example.labels)
        known = self._known.setdefault((self._path.model, self._adapter), {})
        if id(example) not in known:
            known[id(example)] = (example, sampler.gradients([example])[0].numpy().copy())
        return known[id(example)][1]


def _call(calls: Iterator[NDArray[np.uint64]], count: int) -> NDArray[np.uint64]:
    words = next(calls, None)
    if words is None or len(words) != count:
        raise ValueError("a sample takes other coins than its definition says")
    return words


def _noise_of(recording: Recording, expected: _Expected) -> Iterator[tuple[Kind, str]]:
    """Whether each site adds the noise of the manifest, and never one twice."""
    noises = []
    for number, (released, total) in enumerate(zip(recording.released, expected.totals, strict=True)):
        stddev = recording.manifest.noise_stddev(released.attempt)
        noise = _residue(released.integers - total, released.integers.itemsize)
        if (stddev == 0 and noise.any()) or (stddev and not is_noise_of(noise.astype(np.float64), stddev)):
            yield "noise", f"release {number}, of {released.site}"
        noises.append(noise.tobytes())
    if recording.manifest.study.privacy.noise and len(set(noises)) < len(noises):
        yield "reuse", "the noise of two releases"


def _sums_of(recording: Recording, expected: _Expected) -> Iterator[tuple[Kind, str]]:
    """Whether what is unmasked is the sum over the survivors, under as much noise as is claimed: nothing of a mask."""
    if recording.manifest.study.privacy.trust == "local":
        return
    last = {r.site: total for r, total in zip(recording.released, expected.totals, strict=True)}
    for one in recording.sums[-1:]:  # that of the last attempt
        noise = _residue(one.integers - sum(last[site] for site in one.survivors), one.integers.itemsize)
        stddev = math.sqrt(one.variance)
        if (stddev == 0 and noise.any()) or (stddev and not is_noise_of(noise.astype(np.float64), stddev)):
            yield "sum", f"over {', '.join(one.survivors)}"


def _secrets_in_messages(recording: Recording) -> Iterator[tuple[Kind, str]]:
    reached = [recording.manifest.secagg_parameters.levels_reached(one.survivors)[-1] for one in recording.sums]
    for secret in recording.secrets:
        for said in recording.said:
            is_due = secret.level in reached and said.exchange == "consistencies"
            if not is_due and (secret.secret in said.answer or secret.secret.hex().encode() in said.answer):
                yield "secret", f"the {secret.name} of {secret.site} in its answer to {said.exchange}"


def _what_repeats(recording: Recording) -> Iterator[tuple[Kind, str]]:
    for site, samples in recording.tape.coins.items():
        first = [calls[0].tobytes() for calls in samples if calls and len(calls[0])]
        if len(set(first)) < len(first):
            yield "reuse", f"two samples of {site}"
    drawn = [one.secret for one in recording.secrets if one.level is None]
    if len(set(drawn)) < len(drawn):
        yield "reuse", "two secrets"


def _claim_of(recording: Recording) -> Iterator[tuple[Kind, str]]:
    """Whether the claim is no less than what is certain of the schedule, as the study says it, by other code."""
    study = recording.manifest.study
    if recording.claimed is None:
        return
    event = SampledGaussianRelease(
        sampling_probability=study.privacy.sampling_probability,
        noise_multiplier=known(study.privacy.noise_multiplier),
        trust=study.privacy.trust,
        sites_per_patient=study.privacy.sites_per_patient,
    )
    count = known(study.training.max_attempts) * study.training.local_steps
    due = Schedule(event=event, count=count, stages=study.privacy.noise_stages)
    if recording.claimed < _least_epsilon(due, recording.manifest.delta):
        yield "claim", f"{recording.claimed:.2f}"


@cache
def _least_epsilon(schedule: Schedule, delta: float) -> float:
    return least_epsilon(schedule, delta=delta)


def _difference(one: Released, other: Released) -> NDArray[np.int64]:
    return _residue(other.integers.astype(np.int64) - one.integers, one.integers.itemsize)


def _residue(integers: NDArray[np.int64], itemsize: int) -> NDArray[np.int64]:
    """The integers nearest to zero, modulo 2^(8 itemsize) [d]."""
    return integers.astype(f"i{itemsize}").astype(np.int64)


def _norm(difference: NDArray[np.int64]) -> float:
    return math.sqrt(sum(int(value) ** 2 for value in difference))
