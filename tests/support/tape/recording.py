"""A study of four sites, run over a tape to its end, and everything that it shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.update import SiteUpdate
from grandrounds.common.crypto.csprng import fresh_key
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.model.adapter import Vector
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.privacy.events import Schedule
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.step import sum_from_bytes
from support.study.federation import Federation, small_manifest, trained_on
from support.tape.paths import ELSEWHERE, SITE, SITES, Path, Unit
from support.tape.tape import Tape

_IDENTITIES: Final = {site: Identity.generate() for site in SITES}
_SERVER: Final = Identity.generate()


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What a site was sent and answered."""

    site: str
    exchange: str
    request: bytes
    answer: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """What one step of a site released in an attempt, at an adapter [d]: integers [d], after noise, before masks."""

    site: str
    attempt: int
    adapter: Vector
    integers: NDArray[np.signedinteger]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
    """What an attempt unmasked: the sum over its survivors [d], and the variance that its noise is to have."""

    survivors: Sequence[str]
    integers: NDArray[np.signedinteger]
    variance: int


@dataclass(frozen=True, kw_only=True)
class Secret:
    """What no message of an attempt may hold; but a link of noise is shown in the last, where ``level`` sites last."""

    site: str
    name: str
    secret: bytes
    level: int | None = None


@dataclass(kw_only=True, eq=False)
class Recording:
    """One run: its tape, and all that it showed."""

    tape: Tape
    manifest: Manifest = field(init=False)
    attempt: int = 0  # that runs
    said: list[Said] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    # The epsilon that is claimed of all of it; None without noise.
    claimed: float | None = None
    # What is left on the sites' disks.
    states: dict[str, str] = field(default_factory=dict)


def record(path: Path, units: Sequence[Unit], tape: Tape, *, given: Sequence[Released] = ()) -> Recording:
    """Run ``path`` to its end with these units at the site.

    Each release is followed by what was ``given`` in its place, if anything was: what comes after is then seen under
    the same releases, as an adversary's view is who compares two worlds.
    """
    adapter = np.random.default_rng(5).normal(0, 0.3, path.sampler.model.layout.dimension).astype(np.float32)
    runs = _whole if path.whole else _step
    with pytest.MonkeyPatch.context() as watched:
        recording = Recording(tape=tape)
        release = partial(_release, DpSgd.release, recording, given)
        watched.setattr(DpSgd, "release", lambda step, draw: release(step, draw))
        runs(path, units, adapter, recording)
    return recording


def _step(path: Path, units: Sequence[Unit], adapter: Vector, recording: Recording) -> None:
    """The site's update alone, as often as there are attempts, under the keys that an attempt would give it."""
    manifest = recording.manifest = small_manifest(path.study, _IDENTITIES, _SERVER, dimension=adapter.size)
    update = SiteUpdate(manifest=manifest, name=SITE, cohort=Cohort(units), sampler=path.sampler)
    if path.public:
        update = replace(update, public=Cohort(path.public))
    with recording.tape.laid():
        recording.tape.at = SITE
        for attempt in range(1, path.attempts + 1):
            recording.attempt = attempt
            keys = {level: fresh_key() for level in manifest.secagg_parameters.noise_levels[1:]}
            try:
                answer = update(adapter, manifest.mechanism(keys, attempt=attempt)).tobytes()
            except Exception:  # no worker lives on then, and its node says nothing
                answer = b""
            recording.said.append(Said(site=SITE, exchange="its step", request=b"", answer=answer))
    recording.claimed = _claimed(manifest)


def _whole(path: Path, units: Sequence[Unit], adapter: Vector, recording: Recording) -> None:
    """The study, from its first Begin to its last sum."""
    federation = Federation(
        study=path.study,
        dimension=adapter.size,
        adapter=adapter,
        release=trained_on({**ELSEWHERE, SITE: units}, path.sampler),
        identities=_IDENTITIES,
        server=_SERVER,
    )
    recording.manifest = federation.manifest
    with recording.tape.laid():
        _run(federation, path, recording)
    recording.claimed = _claimed(federation.manifest)
    for site, worker in federation.workers.items():
        recording.states[site] = "\n".join(worker._state.database._connection.iterdump())
        worker.close()


def _claimed(manifest: Manifest) -> float | None:
    return None if manifest.schedule is None else _epsilon(manifest.schedule, manifest.delta)


@cache
def _epsilon(schedule: Schedule, delta: float) -> float:
    return epsilon(schedule, delta=delta).epsilon


def _run(federation: Federation, path: Path, recording: Recording) -> None:
    tape, training = recording.tape, federation.open_training()
    while not training.finished:
        round_ = training._round
        for site, message in training.messages().items():
            request, worker = bytes(message[:]), federation.workers[site]
            envelope = Envelope.parse(request)
            if path.lost(site, envelope):
                continue
            tape.at, recording.attempt = site, envelope.attempt
            try:
                answer = worker.handle(request)
            except Exception:  # no worker lives on then, and its node says nothing
                answer = b""
            tape.at = "the server"
            recording.said.append(Said(site=site, exchange=envelope.exchange, request=request, answer=answer))
            if envelope.exchange == "begin" and worker._attempt is not None:
                recording.secrets.extend(_secrets_of(site, worker._attempt))
            training.receive(site, answer)
        training.advance()
        if round_.finished:
            last = federation.checkpoints[-1].last_step
            recording.sums.append(
                Sum(
                    survivors=round_.survivors,
                    integers=sum_from_bytes(federation.manifest, last.total).copy(),
                    variance=federation.manifest.variance_in_sum(
                        round_.survivors,
                        shown=training.ledger.verified.attempts[-1].shown,
                        attempt=round_.outcomes[-1].attempt,
                    ),
                )
            )


def _release(
    release: Any, recording: Recording, given: Sequence[Released], step: DpSgd, draw: Any
) -> NDArray[np.signedinteger]:
    adapter = step.sampler.model.get_adapter()
    with recording.tape.unwatched():
        integers = release(step, draw)
    number = len(recording.released)
    # Residues are looked at as the integers nearest to zero.
    kept = integers.copy().view(f"i{integers.itemsize}")
    recording.released.append(
        Released(site=recording.tape.at, attempt=recording.attempt, adapter=adapter, integers=kept)
    )
    return given[number].integers.copy().view(integers.dtype) if given else integers


def _secrets_of(site: str, attempt: Any) -> list[Secret]:
    """What a site holds after its advert, apart from the last link, which is public."""
    held = attempt._secrets
    secret = partial(Secret, site=site)
    *links, _ = attempt._links.items()
    return [
        *(secret(name=name, secret=getattr(held, name)) for name in ("channel", "mask", "seed")),
        *(secret(name=f"key of layer {level}", secret=key) for level, key in attempt._layer_keys.items()),
        *(secret(name=f"link of layer {level}", secret=link, level=level) for level, link in links),
    ]
