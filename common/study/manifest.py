"""The manifest: a complete study with its keys and hashes, which every site checks, countersigns and runs."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self, TypedDict

from pydantic import Field, model_validator

from ..crypto.csprng import fresh_key
from ..crypto.identity import Hex32, Identity, Name, Signature, canonical_json, sha256, verify_signature
from ..model.adapter import vector_sha256
from ..model.language_model import LanguageModel
from ..privacy.events import Schedule
from ..privacy.mechanism import Lattice, LayeredGaussian, Mechanism, NoNoise, RoundedGaussian, honest_shares
from ..privacy.noise_layers import NoiseLayer, noise_shares
from ..privacy.rounded_gaussian import MIN_STDDEV
from ..privacy.site_noise import SiteNoise, variance_in_sum
from ..privacy.trust import Trust
from ..schema import Section, Version, known, validated
from ..secagg.encoding import FixedPoint
from ..secagg.parameters import RosterEntry, SecaggParameters
from ..system.code_pin import check_form_of
from ..system.package_hash import running_sha256
from ..version import __version__
from .completion import draw_cap_of, naming_stage, schedule_of
from .study import Site, Study

MANIFEST_LABEL = b"grandrounds/manifest/v1\n"
COUNTERSIGNATURE_LABEL = b"grandrounds/countersignature/v1\n"


class _Trusted(TypedDict):
    trust: Trust
    sites: int
    threshold: int
    corrupt_sites: int


class Manifest(Section):
    """What every site checks, signs and runs: a complete study with its keys and hashes.

    ``model_sha256`` is ``model_folder_sha256`` of the base model: weights, configuration, tokenizer and chat template.
    ``frozen_adapter_sha256`` is that of the adapter's public tensors, which all sites start with and nobody trains.
    ``adapter_layout_sha256`` is that of all its tensors' names and shapes, trained or not (``AdapterLayout``).
    ``tensor_sizes`` are of the trained tensors, in their order: ``dimension`` together.
    ``adapter_sha256`` is that of the trained tensors as they are before the first round (``common/model/adapter``).
    Where the study names a first adapter, by the hash of its file, both follow from that.
    ``package_sha256`` is that of the program's files, ``app_sha256`` of the archive that Flower carries of the study's
    app, ``connection_sha256`` of where sites find the server, and of whom they take for it; a simulation has none.
    """

    study_id: Hex32
    version: int = Field(default=1, ge=1)
    previous: Hex32 = "00" * 32
    study: Study
    site_keys: dict[Name, Hex32]
    server_key: Hex32
    dimension: int = Field(ge=1, le=2**32)
    tensor_sizes: tuple[int, ...] = Field(min_length=1, max_length=1 << 16, strict=False)
    model_sha256: Hex32
    frozen_adapter_sha256: Hex32
    adapter_layout_sha256: Hex32
    adapter_sha256: Hex32
    package_version: Version
    package_sha256: Hex32
    app_sha256: Hex32 | None = None
    connection_sha256: Hex32 | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.site_keys) != {site.name for site in self.study.sites}:
            raise ValueError("site_keys: not exactly the sites of the study")
        if min(self.tensor_sizes) < 1 or sum(self.tensor_sizes) != self.dimension:
            raise ValueError(f"tensor_sizes: they do not come to the adapter's {self.dimension} numbers")
        privacy, training, secagg = self.study.privacy, self.study.training, self.study.secagg
        needed = {
            "data.evaluation": self.study.data.evaluation,
            "privacy.delta": privacy.delta,
            "training.learning_rate": training.learning_rate,
            "training.max_attempts": training.max_attempts,
            "secagg.threshold": secagg.threshold,
            "secagg.modulus_bits": secagg.modulus_bits,
            **{f"sites.{site.name}.max_units": site.max_units for site in self.study.sites},
        }
        if privacy.noise:
            needed |= {"privacy.target_epsilon": privacy.target_epsilon}
            needed |= {"privacy.noise_multiplier": privacy.noise_multiplier}
        if self.app_sha256 is not None:  # in a simulation nobody watches
            needed["training.answer_after_s"] = training.answer_after_s
        files = {
            "about.audit": self.study.about.audit,
            "model.first_adapter": self.study.model.first_adapter,
            "data.public": self.study.data.public,
        }
        for name, file in files.items():
            if file is not None and re.fullmatch("sha256:[0-9a-f]{64}", file) is None:
                raise ValueError(f"study.{name}: a manifest names it by its hash, as sha256:…")
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(f"study: a manifest states every parameter, and {', '.join(missing)} is open")
        # Each refuses what it cannot stand for: two parties with one key, too few honest shares, noise out of range.
        _ = self.secagg_parameters, self.honest_shares, self.fixed_point, self.schedule
        for attempt in self.stage_starts:
            with naming_stage(attempt):
                self.site_noise(attempt)
        if privacy.trust == "distributed" and self.largest_sum >= 2**31:
            raise ValueError(
                f"study: a sum could reach {self.largest_sum:.3g} and wrap at 2**31; "
                "choose a smaller sampling_probability or adapter"
                + (", or smaller factors of privacy.noise_stages" if self.study.privacy.noise_stages else "")
            )
        return self

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """A manifest in its ``canonical`` form, which is what was hashed and signed: nothing missing is filled in.

        Raises OtherProgramError where it has another form, and says that another program wrote it; else ValueError or
        RecursionError.
        """
        try:
            manifest = cls.model_validate_json(data)
            if manifest.canonical != data:
                raise ValueError("a manifest in another form than the one that is hashed")
        except (ValueError, RecursionError):
            check_form_of(data)
            raise
        return manifest

    @property
    def canonical(self) -> bytes:
        """The manifest's one encoding."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> str:
        """The manifest's hash, which every message of the study repeats."""
        return sha256(MANIFEST_LABEL + self.canonical)

    @property
    def threshold(self) -> int:
        """t: how many sites must answer."""
        return known(self.study.secagg.threshold)

    @property
    def max_attempts(self) -> int:
        """The schedule's length in attempts; the claim covers all of them."""
        return known(self.study.training.max_attempts)

    @property
    def schedule(self) -> Schedule | None:
        """What the claim covers: every release that ``max_attempts`` allow. None without noise, and then no claim."""
        if not self.study.privacy.noise:
            return None
        return schedule_of(
            self.study.privacy,
            local_steps=self.study.training.local_steps,
            attempts=self.max_attempts,
            delta=self.delta,
            noise_multiplier=known(self.study.privacy.noise_multiplier),
        )

    def noise_multiplier(self, attempt: int) -> float:
        """z of the releases of that attempt, by its serial in the study, 1 the first: not by round, nor by version.

        What is claimed of an attempt, what sites add in it and what is taken off again all follow from here. A study
        without noise has none to ask for.
        """
        return known(self.schedule).event_of((attempt - 1) * self.study.training.local_steps + 1).noise_multiplier

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The attempts with which noise becomes another, the first among them."""
        return (1, *(attempt for attempt, _ in self.study.privacy.noise_stages))

    @property
    def delta(self) -> float:
        """δ of the claim."""
        return known(self.study.privacy.delta)

    @property
    def honest_shares(self) -> int:
        """h: the least number of honest sites in a sum that is unmasked; 1 under local trust."""
        privacy = self.study.privacy
        return honest_shares(trust=privacy.trust, threshold=self.threshold, corrupt_sites=privacy.corrupt_sites)

    @property
    def lattice(self) -> Lattice:
        """The integers that clipped gradients are rounded to: fine enough for each layer of a site's least noise."""
        privacy, least_norm = self.study.privacy, 0.0
        if privacy.noise:
            narrowest = max(noise_shares(**self._trusted))
            least_norm = MIN_STDDEV * math.sqrt(narrowest) / min(map(self.noise_multiplier, self.stage_starts))
        return Lattice(
            dimension=self.dimension,
            clipping_norm=privacy.clipping_norm,
            clipping=privacy.clipping,
            least_norm=least_norm,
        )

    def site_noise(self, attempt: int) -> SiteNoise | None:
        """One site's noise in one release of that attempt, in lattice units; None without noise."""
        if not self.study.privacy.noise:
            return None
        return SiteNoise.of(
            noise_multiplier=self.noise_multiplier(attempt),
            sensitivity=self.lattice.sensitivity,
            **self._trusted,
        )

    def noise_stddev(self, attempt: int) -> float:
        """σ of one site's noise in that attempt, with all its layers, in lattice units; 0 without noise."""
        noise = self.site_noise(attempt)
        return 0.0 if noise is None else math.sqrt(noise.variance_left())

    def variance_in_sum(self, survivors: Sequence[str], *, shown: Sequence[str], attempt: int) -> int:
        """That of the noise in an attempt's sum over ``survivors``, in lattice units; 0 without noise.

        ``shown`` had theirs taken off, if any is.
        """
        noise = self.site_noise(attempt)
        if noise is None:
            return 0
        level = self.secagg_parameters.levels_reached(survivors)[-1]
        return variance_in_sum(noise, survivors, stripped=shown, level=level)

    @property
    def _trusted(self) -> _Trusted:
        privacy = self.study.privacy
        return {
            "trust": privacy.trust,
            "sites": len(self.study.sites),
            "threshold": self.threshold,
            "corrupt_sites": privacy.corrupt_sites,
        }

    @property
    def tensor_starts(self) -> tuple[int, ...]:
        """Where each trained tensor begins in the adapter, and where the last one ends."""
        return tuple(itertools.accumulate(self.tensor_sizes, initial=0))

    @property
    def largest_sum(self) -> float:
        """A bound on one coordinate of the aggregate that noise exceeds only with negligible probability."""
        drawn = sum(self.draw_cap(site.name) + self.study.data.public_units for site in self.study.sites)
        widest = max(map(self.noise_stddev, self.stage_starts))
        return drawn * self.lattice.sensitivity + 10 * widest * math.sqrt(len(self.study.sites))

    def mechanism(self, layer_keys: Mapping[int, bytes], *, attempt: int) -> Mechanism:
        """The noise that one site adds to a release of that attempt.

        Its layers are drawn under ``layer_keys``, by their levels: secret, and drawn for that attempt alone.
        """
        noise = self.site_noise(attempt)
        if noise is None:
            return NoNoise()
        base = RoundedGaussian(noise_stddev=noise.stddev)
        layers = tuple((layer.stddev, layer_keys[layer.level]) for layer in noise.layers)
        return LayeredGaussian(base=base, layers=layers) if layers else base

    @property
    def secagg_parameters(self) -> SecaggParameters:
        """What the protocol takes from the manifest; the server chooses none of it.

        The layers of noise are those of the first attempt, and of every one in a study whose noise has no stages: what
        all attempts have in common are their levels. Who takes layers off asks for ``attempt_parameters``.
        """
        return SecaggParameters(
            manifest=self.sha256,
            roster=tuple(
                RosterEntry(name=site.name, public_key=self.site_keys[site.name]) for site in self.study.sites
            ),
            server_key=self.server_key,
            threshold=self.threshold,
            corrupt_sites=self.study.privacy.corrupt_sites,
            modulus_bits=known(self.study.secagg.modulus_bits),
            dimension=self.dimension,
            noise_layers=self._noise_layers(1),
        )

    def attempt_parameters(self, attempt: int) -> SecaggParameters:
        """``secagg_parameters`` with the layers that sites add in that attempt."""
        return replace(self.secagg_parameters, noise_layers=self._noise_layers(attempt))

    def _noise_layers(self, attempt: int) -> tuple[NoiseLayer, ...]:
        noise = self.site_noise(attempt)
        return () if noise is None else noise.layers

    @property
    def fixed_point(self) -> FixedPoint:
        """How local trust's updates become integers: transport only, so that no sum can wrap."""
        secagg = self.study.secagg
        return FixedPoint(
            modulus_bits=known(secagg.modulus_bits), update_range=secagg.update_range, sites=len(self.study.sites)
        )

    def nominal_units(self, name: str) -> int:
        """The nominal units of one site."""
        return self._site(name).nominal_units

    def step_units(self, names: Sequence[str]) -> float:
        """How many units a step of some sites has by public figures: those that q draws of all nominal ones, and the
        public ones that each site adds. In whatever order they are named, it is the same number to the last bit.
        """
        nominal = sum(map(self.nominal_units, names))
        return self.study.privacy.sampling_probability * nominal + self.study.data.public_units * len(names)

    def max_units(self, name: str) -> int:
        """The most units that the cohort of one site may have."""
        return known(self._site(name).max_units)

    def draw_cap(self, name: str) -> int:
        """B: the most units that one step reads at one site."""
        return draw_cap_of(self.study, max_units=self.max_units(name), delta=self.delta)

    def _site(self, name: str) -> Site:
        return next(site for site in self.study.sites if site.name == name)


def new_manifest(
    study: Study,
    *,
    site_keys: Mapping[str, str],
    server_key: str,
    model: LanguageModel,
    model_sha256: str,
    app_sha256: str | None = None,
    connection_sha256: str | None = None,
) -> Manifest:
    """The manifest of a complete ``study`` on ``model``, from files of that hash, for the program that runs.

    Raises StudyError.
    """
    return validated(
        Manifest,
        {
            "study_id": fresh_key().hex(),
            "study": study,
            "site_keys": dict(site_keys),
            "server_key": server_key,
            "dimension": model.layout.dimension,
            "tensor_sizes": model.layout.sizes,
            "model_sha256": model_sha256,
            "frozen_adapter_sha256": model.frozen_adapter_sha256,
            "adapter_layout_sha256": model.adapter_layout_sha256,
            "adapter_sha256": vector_sha256(model.get_adapter()),
            "package_version": __version__,
            "package_sha256": running_sha256(),
            "app_sha256": app_sha256,
            "connection_sha256": connection_sha256,
        },
    )


class Countersignature(Section):
    """A site agrees to a manifest, given by its hash, in one place, under the key that it is known by.

    The place is the ledger that the manifest's entry continues, by length and head: a signature that stood for any
    place would let a server enter a successor before attempts that it wants to hide. ``reservation`` says which of all
    that the site ever made is the study's: a number that it gave to another study before shows that its state was set
    back.
    """

    site: Name
    manifest: Hex32
    ledger_length: int = Field(ge=0, le=2**40)
    ledger_head: Hex32
    reservation: int = Field(ge=0, le=2**40)
    key: Hex32
    signature: Signature

    @classmethod
    def of(
        cls, identity: Identity, *, site: str, manifest: str, ledger_length: int, ledger_head: str, reservation: int
    ) -> Self:
        """Sign a manifest after a ledger, both of which the site has checked before."""
        signed = _signed(site, manifest, ledger_length, ledger_head, reservation)
        return cls(
            site=site,
            manifest=manifest,
            ledger_length=ledger_length,
            ledger_head=ledger_head,
            reservation=reservation,
            key=identity.public_key,
            signature=identity.sign(COUNTERSIGNATURE_LABEL, signed).hex(),
        )

    def verify(self) -> None:
        """Raises EnvelopeError unless the owner of ``key`` signed this; whose key it is, the manifest says."""
        signed = _signed(self.site, self.manifest, self.ledger_length, self.ledger_head, self.reservation)
        verify_signature(self.key, bytes.fromhex(self.signature), COUNTERSIGNATURE_LABEL, signed)


def _signed(site: str, manifest: str, ledger_length: int, ledger_head: str, reservation: int) -> bytes:
    return f"{manifest} {site} {ledger_length} {ledger_head} {reservation}".encode()
