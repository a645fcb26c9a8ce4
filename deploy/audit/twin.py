"""A twin of a study: its parameters, protocol, arithmetic and noise, with canaries for patients and keys of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ...client.training.dp_sgd import DpSgd
from ...client.training.update import SiteUpdate
from ...common.audit.evidence import AuditedParameters
from ...common.crypto.csprng import fresh_key
from ...common.crypto.identity import Identity
from ...common.privacy.mechanism import Mechanism
from ...common.schema import known, validated
from ...common.secagg.masks import add_masks
from ...common.study.manifest import Manifest
from .attempt import Parties
from .canaries import Canaries, CanarySampler, room_for_canaries
from .faults import Fault, Where
from .subject import Tell

_NO_ADAPTER: Final = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """A study's manifest under other keys, whose sites hold ``canaries`` and nobody else.

    The adversary of a claim knows every other patient's gradient, and takes it off: so there are none. A canary's
    gradient is the same at every adapter: so none is trained, and every attempt of the schedule is made and succeeds.
    """

    manifest: Manifest
    server: Identity
    sites: Mapping[str, Identity]
    canaries: Canaries

    @classmethod
    def of(cls, audited: Manifest, *, canaries: int, seed: bytes) -> Self:
        """The twin of the ``audited`` study.

        Raises StudyError where it claims nothing, or has no room for so many.
        """
        AuditedParameters.of(audited.study)
        names, honest = [site.name for site in audited.study.sites], _honest(audited)
        planted = Canaries.planted(
            canaries,
            dimension=audited.dimension,
            releases=_releases(audited),
            homes_of=honest,
            sites=names,
            copies=_copies(audited),
            seed=seed,
        )
        server, sites = Identity.generate(), {name: Identity.generate() for name in names}
        held = {name: len(units) for name, units in planted.units.items()}
        manifest = validated(
            Manifest,
            {
                **audited.model_dump(),
                "study_id": fresh_key().hex(),
                "version": 1,
                "previous": "00" * 32,
                "server_key": server.public_key,
                "site_keys": {name: identity.public_key for name, identity in sites.items()},
                "study": {
                    **audited.study.model_dump(),
                    "sites": [
                        {**site.model_dump(), "max_units": max(known(site.max_units), held[site.name])}
                        for site in audited.study.sites
                    ],
                },
            },
        )
        return cls(manifest=manifest, server=server, sites=sites, canaries=planted)

    def seen(self, fault: Fault, tell: Tell = lambda doing: None) -> NDArray[np.float64]:
        """What an adversary sees of each direction in each release that it may be in, float64 [releases, judged].

        In units of a clipped gradient: a canary that was drawn adds 1. Under distributed trust the releases are the
        attempts' sums; under local trust the steps of the sites that a canary is, or would be, at.
        """
        updates = {
            site.name: _CanaryUpdate(
                manifest=self.manifest,
                name=site.name,
                cohort=self.canaries.cohort(site.name, max_units=known(site.max_units)),
                sampler=CanarySampler(self.canaries.directions, clipping_norm=self.manifest.lattice.clipping_norm),
                fault=fault,
                place=place,
            )
            for place, site in enumerate(self.manifest.study.sites)
        }
        if self.manifest.study.privacy.trust == "local":
            return self._seen_locally(updates, tell)
        return self._seen_in_sums(updates, tell)

    def _seen_in_sums(self, updates: Mapping[str, "_CanaryUpdate"], tell: Tell) -> NDArray[np.float64]:
        parties = Parties(
            parameters=self.manifest.secagg_parameters,
            server=self.server,
            sites=self.sites,
            corrupt=[name for name in self.sites if name not in self.canaries.homes_of],
        )
        sums = []
        for attempt in range(1, self.manifest.max_attempts + 1):
            tell(f"attempt {attempt} of {self.manifest.max_attempts}")
            at = {name: replace(update, step=attempt - 1).encoded for name, update in updates.items()}
            in_attempt = replace(parties, parameters=self.manifest.attempt_parameters(attempt))
            sums.append(self._coordinates(in_attempt.released(at, attempt=attempt)))
        return np.array(sums)

    def _seen_locally(self, updates: Mapping[str, "_CanaryUpdate"], tell: Tell) -> NDArray[np.float64]:
        steps = self.manifest.max_attempts * self.manifest.study.training.local_steps
        by_site = []
        for name, update in updates.items():
            tell(f"site {name}")
            by_site.append([self._coordinates(replace(update, step=step).released()) for step in range(steps)])
        seen = np.array(by_site)  # [homes, steps, judged]
        at_home = seen[self.canaries.homes.T, :, np.arange(self.canaries.judged)]  # [copies, judged, steps]
        return np.concatenate([steps.T for steps in at_home])

    def _coordinates(self, released: NDArray[np.signedinteger]) -> NDArray[np.float64]:
        lattice = self.manifest.lattice
        return self.canaries.directions.coordinates(released, self.canaries.judged) / (
            lattice.scale * lattice.clipping_norm
        )


def room_in_twin(audited: Manifest) -> int:
    """The most canaries that a twin of the study has room for."""
    return room_for_canaries(dimension=audited.dimension, releases=_releases(audited), sites=len(audited.study.sites))


def _honest(audited: Manifest) -> Sequence[str]:
    """The sites that canaries may be at: under distributed trust without those that the adversary has."""
    names, privacy = [site.name for site in audited.study.sites], audited.study.privacy
    return names[: len(names) - privacy.corrupt_sites] if privacy.trust == "distributed" else names


def _copies(audited: Manifest) -> int:
    return min(audited.study.privacy.sites_per_patient, len(_honest(audited)))


def _releases(audited: Manifest) -> int:
    """How many a canary may be in."""
    steps = audited.max_attempts * audited.study.training.local_steps
    return steps if audited.study.privacy.trust == "distributed" else _copies(audited) * steps


@dataclass(frozen=True, kw_only=True)
class _CanaryUpdate(SiteUpdate):
    """The update of the site at this ``place`` in one ``step``, both from 0, whose noise has a ``fault``."""

    fault: Fault
    place: int
    step: int = 0

    def encoded(self, layer_keys: Mapping[int, bytes]) -> NDArray[np.unsignedinteger]:
        """The integers [d] that are masked in an attempt."""
        encoded = self(_NO_ADAPTER, self.manifest.mechanism(layer_keys, attempt=self.step + 1))
        if self.fault.leaves_mask and self.place == 0:
            add_masks(encoded, plus=[fresh_key()])
        return encoded

    def released(self) -> NDArray[np.signedinteger]:
        """The sum [d] by which a site that trusts itself alone takes a step."""
        attempt = self.step // self.manifest.study.training.local_steps + 1
        return self._dp_sgd(self.manifest.mechanism({}, attempt=attempt)).release(self._draw)

    def _dp_sgd(self, mechanism: Mechanism) -> DpSgd:
        return super()._dp_sgd(self.fault.of(mechanism, Where(site=self.place, step=self.step)))
