"""A site's policy: what it allows a study to be, whoever proposes it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from ...common.crypto.identity import GivenKey, Hex32, Name, shown_key
from ...common.errors import StudyError
from ...common.privacy.trust import Trust
from ...common.schema import Section, known, read_toml, validated
from ...common.study.manifest import Manifest
from ...common.study.study import PrivacyUnit, Site
from ...common.version import __version__
from ..minimisation.rules import Minimisation
from .asset import LARGEST_EPSILON, Asset

POLICY: Final = "policy.toml"
_WHY: Final = "a site takes part only in what it has allowed beforehand"


class AllowedModel(Section):
    """A base model by its name, by the hash of its files, or by both; a name alone says nothing about the files."""

    name: str | None = Field(default=None, min_length=1, max_length=512)
    sha256: Hex32 | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.name is None and self.sha256 is None:
            raise ValueError("name: it is missing, and so is sha256; give one or both")
        return self

    def __str__(self) -> str:
        return f"{self.name or 'any'} ({self.sha256 or 'any files'})"

    def is_of(self, manifest: Manifest) -> bool:
        """Whether it is the manifest's base model."""
        return self.name in (None, manifest.study.model.name) and self.sha256 in (None, manifest.model_sha256)


# Tuples are not strict: TOML has lists alone. What stands in them is as strict as the rest.
class StudyPolicy(Section):
    """What any one study may be.

    ``package_sha256`` are of programs that the site has looked at; None allows any of ``package_versions``.
    ``verified_peers`` are public keys that were compared with their owners.
    """

    largest_epsilon: float = Field(default=1.0, gt=0, le=100)
    largest_delta: float = Field(default=1e-6, gt=0, lt=0.1)
    trust: tuple[Trust, ...] = Field(default=("local",), strict=False)
    smallest_honest_shares: int = Field(default=3, ge=2, le=1000)
    models: tuple[AllowedModel, ...] = Field(default=(), strict=False)
    package_versions: tuple[str, ...] = Field(default=(__version__,), strict=False)
    package_sha256: tuple[Hex32, ...] | None = Field(default=None, strict=False)
    verified_peers: tuple[GivenKey, ...] = Field(default=(), strict=False)


class DataPolicy(Section):
    """The records that studies read, and what all studies together may reveal about each patient in them.

    ``synthetic_data_only`` states that they are of nobody; only then may a study run without noise. ``opted_out`` is a
    file of this site alone: the records of the patients that it names are left out when records are loaded.
    """

    asset: Name = "patients"
    unit: PrivacyUnit = "patient"
    filter: Literal["sum", "rdp"] = "sum"
    epsilon: float = Field(default=1.0, gt=0, le=LARGEST_EPSILON)
    delta: float = Field(default=1e-6, gt=0, lt=0.1)
    order: int | None = Field(default=None, ge=2, le=1024)
    synthetic_data_only: bool = False
    opted_out: Path | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.filter == "rdp") != (self.order is not None):
            raise ValueError("order: the filter rdp needs one, fixed for good, and the filter sum has none")
        return self

    def data_asset(self) -> Asset:
        """The asset as it is registered. Raises PrivacyError where its order leaves nothing of its budget."""
        if self.synthetic_data_only:
            return Asset.synthetic(self.asset, unit=self.unit)
        if self.order is None:
            return Asset.summed(self.asset, epsilon=self.epsilon, delta=self.delta, unit=self.unit)
        return Asset.renyi(self.asset, epsilon=self.epsilon, delta=self.delta, order=self.order, unit=self.unit)


class Policy(Section):
    """Everything a site allows, and what it takes out of its records; what is left out has the most careful value."""

    study: StudyPolicy = StudyPolicy()
    data: DataPolicy = DataPolicy()
    minimise: Minimisation = Minimisation()


def read_policy(path: Path) -> Policy:
    """The policy of a TOML file; its paths start from the file's folder. Raises StudyError that names the field."""
    try:
        policy = validated(Policy, read_toml(path), source=path)
    except StudyError as error:
        raise StudyError(error.what, why=_WHY, fix=error.fix) from error
    opted_out = policy.data.opted_out and path.parent / policy.data.opted_out
    below = {"data": policy.data.model_copy(update={"opted_out": opted_out})}
    return policy.model_copy(update=below | {"minimise": policy.minimise.below(path.parent)})


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A point in which a study breaks a site's policy.

    ``field`` of policy.toml has the value ``found``. The study needs ``needed`` there; where that is a tuple, the field
    lists what is allowed, and all of it has to be in the list. ``why`` is what it is of the study. ``of_site``: it is
    about the site's own records and limits, which follow no study.
    """

    field: str
    found: Any
    needed: Any
    why: str
    of_site: bool = False

    def __str__(self) -> str:
        has, needs = ("lists", "in it ") if isinstance(self.needed, tuple) else ("is", "")
        return f"{self.field} {has} {_shown(self.found)}, and the study needs {needs}{_shown(self.needed)} ({self.why})"


def check_policy(policy: Policy, manifest: Manifest, *, name: str) -> None:
    """Raises StudyError with every point in which the study breaks the policy of the site ``name``.

    It reads no record. What the study costs beside others is for ``Reservations`` to allow.
    """
    if name not in manifest.site_keys:
        raise StudyError(
            f"name in site.toml is {name}, and the study's sites are {', '.join(manifest.site_keys)}",
            why=_WHY,
            fix="ask the server's operator to enroll this site's site.json, and to name the site in study.toml",
        )
    broken = list(violations(policy, manifest, name=name))
    if broken:
        raise StudyError(
            f"the study breaks this site's policy, {POLICY}: {'; '.join(map(str, broken))}",
            why=_WHY,
            fix=f"ask the study's author for another study, or change {POLICY} if the site means to allow this: "
            "`grandrounds client join` without --yes offers to",
        )


def violations(policy: Policy, manifest: Manifest, *, name: str) -> Iterator[Violation]:
    """Every point in which a study breaks the policy of its site ``name``."""
    limits, privacy = policy.study, manifest.study.privacy
    if privacy.unit != policy.data.unit:
        yield _data("unit", policy, privacy.unit, f"it protects each {privacy.unit}")
    if not privacy.noise and not policy.data.synthetic_data_only:
        yield _data("synthetic_data_only", policy, True, "it adds no noise, which is for records of nobody")
    yield from (point for site in manifest.study.sites if site.name == name for point in _misquoted(policy, site))
    epsilon = known(privacy.target_epsilon) if privacy.noise else 0.0
    if epsilon > limits.largest_epsilon:
        yield _study("largest_epsilon", policy, epsilon, "its ε")
    if privacy.noise and manifest.delta > limits.largest_delta:
        yield _study("largest_delta", policy, manifest.delta, "its δ")
    if privacy.trust not in limits.trust:
        yield _study("trust", policy, (privacy.trust,), "who adds the noise")
    # Under local trust the site's own noise is all that protects its patients: h is 1 whatever the others do.
    if privacy.trust == "distributed" and manifest.honest_shares < limits.smallest_honest_shares:
        yield _study(
            "smallest_honest_shares",
            policy,
            manifest.honest_shares,
            "honest shares of noise that are certain in every sum",
        )
    if not any(model.is_of(manifest) for model in limits.models):
        model = AllowedModel(name=manifest.study.model.name, sha256=manifest.model_sha256)
        yield _study("models", policy, (model,), "its base model")
    if manifest.package_version not in limits.package_versions:
        yield _study("package_versions", policy, (manifest.package_version,), "the program's version")
    if limits.package_sha256 is not None and manifest.package_sha256 not in limits.package_sha256:
        yield _study("package_sha256", policy, (manifest.package_sha256,), "of the program's files")
    yield from _unverified(policy, manifest, name)


def _misquoted(policy: Policy, site: Site) -> Iterator[Violation]:
    """What the study says of the site, and the site does not."""
    if site.sensitivity == "synthetic" and not policy.data.synthetic_data_only:
        yield _data("synthetic_data_only", policy, True, "it calls this site's records synthetic")
    if site.largest_epsilon not in (None, policy.study.largest_epsilon):
        limit = _study("largest_epsilon", policy, site.largest_epsilon, "it says so of this site")
        yield replace(limit, of_site=True)
    if site.budget_epsilon not in (None, policy.data.epsilon):
        yield _data("epsilon", policy, site.budget_epsilon, "it says so of this site")
    if site.minimised is not None and set(site.minimised) != set(policy.minimise.in_words):
        # Not a list of what is allowed: what is done, and neither more nor less.
        done, said = (", ".join(words) or "nothing" for words in (policy.minimise.in_words, site.minimised))
        yield Violation(field="minimise", found=done, needed=said, why="it says so of this site", of_site=True)


def _unverified(policy: Policy, manifest: Manifest, name: str) -> Iterator[Violation]:
    """Keys that nobody compared may all be one party's: their sites count towards those assumed corrupt."""
    verified = policy.study.verified_peers
    found = tuple(map(shown_key, verified))

    def missing(keys: Iterable[str], why: str) -> Violation:
        return Violation(field="study.verified_peers", found=found, needed=tuple(map(shown_key, keys)), why=why)

    if manifest.server_key not in verified:
        yield missing([manifest.server_key], "the server's key")
    sites = [site for site, key in manifest.site_keys.items() if site != name and key not in verified]
    assumed = manifest.study.privacy.corrupt_sites
    if len(sites) > assumed:
        yield missing(
            [manifest.site_keys[site] for site in sites],
            f"the keys of {', '.join(sites)}, of which {assumed} may be missing, as many as it assumes corrupt",
        )


def _study(field: str, policy: Policy, needed: object, why: str) -> Violation:
    return Violation(field=f"study.{field}", found=getattr(policy.study, field), needed=needed, why=why)


def _data(field: str, policy: Policy, needed: object, why: str) -> Violation:
    return Violation(field=f"data.{field}", found=getattr(policy.data, field), needed=needed, why=why, of_site=True)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)
