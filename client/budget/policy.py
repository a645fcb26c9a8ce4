"""A site's policy: what it allows a study to be, whoever proposes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ...common.crypto.identity import Hex32, Name
from ...common.errors import StudyError
from ...common.privacy.trust import Trust
from ...common.schema import Section, read_toml, validated
from ...common.study.manifest import Manifest
from ...common.study.study import PrivacyUnit, Site
from ...common.version import __version__
from .asset import LARGEST_EPSILON, Asset

_WHY = "a site takes part only in what it has allowed beforehand"


class AllowedModel(Section):
    """A base model by its name, by the hash of its files, or by both; a name alone says nothing about the files."""

    name: str | None = Field(default=None, min_length=1, max_length=512)
    sha256: Hex32 | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.name is None and self.sha256 is None:
            raise ValueError("give its name, its sha256 or both")
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
    verified_peers: tuple[Hex32, ...] = Field(default=(), strict=False)


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
            raise ValueError("data.order: the filter rdp needs one, fixed for good, and the filter sum has none")
        return self

    def data_asset(self) -> Asset:
        """The asset as it is registered. Raises PrivacyError where its order leaves nothing of its budget."""
        if self.synthetic_data_only:
            return Asset.synthetic(self.asset, unit=self.unit)
        if self.order is None:
            return Asset.summed(self.asset, epsilon=self.epsilon, delta=self.delta, unit=self.unit)
        return Asset.renyi(self.asset, epsilon=self.epsilon, delta=self.delta, order=self.order, unit=self.unit)


class Policy(Section):
    """Everything a site allows; what is left out has the most careful value."""

    study: StudyPolicy = StudyPolicy()
    data: DataPolicy = DataPolicy()


def read_policy(path: Path) -> Policy:
    """The policy of a TOML file; its paths start from the file's folder. Raises StudyError that names the field."""
    try:
        policy = validated(Policy, read_toml(path))
    except StudyError as error:
        raise StudyError(f"the policy {path.name}: {error.what}", why=_WHY, fix=error.fix) from error
    if policy.data.opted_out is None:
        return policy
    data = policy.data.model_copy(update={"opted_out": path.parent / policy.data.opted_out})
    return policy.model_copy(update={"data": data})


def check_policy(policy: Policy, manifest: Manifest, *, name: str) -> None:
    """Raises StudyError with every point in which the study breaks the policy of the site ``name``.

    It reads no record. What the study costs beside others is for ``Reservations`` to allow.
    """
    broken = list(_broken(policy, manifest, name))
    if broken:
        raise StudyError(
            f"the study breaks this site's policy: {'; '.join(broken)}",
            why=_WHY,
            fix="ask the study's author for another study, or change the policy if the site means to allow this",
        )


def _broken(policy: Policy, manifest: Manifest, name: str) -> Iterator[str]:
    limits, privacy = policy.study, manifest.study.privacy
    if name not in manifest.site_keys:
        yield f"its sites are {', '.join(manifest.site_keys)}, and {name} is not among them"
    if privacy.unit != policy.data.unit:
        yield f"it protects each {privacy.unit}, and the site's budget is for each {policy.data.unit}"
    if privacy.noise:
        yield from _above("ε", privacy.target_epsilon or 0.0, limits.largest_epsilon)
        yield from _above("δ", manifest.delta, limits.largest_delta)
    elif not policy.data.synthetic_data_only:
        yield "it adds no noise, and the site's records are not stated to be synthetic (synthetic_data_only = false)"
    yield from (point for site in manifest.study.sites if site.name == name for point in _misquoted(policy, site))
    if privacy.trust not in limits.trust:
        yield f"its trust is {privacy.trust}, and the site allows {_listed(limits.trust)}"
    # Under local trust the site's own noise is all that protects its patients: h is 1 whatever the others do.
    if privacy.trust == "distributed" and manifest.honest_shares < limits.smallest_honest_shares:
        yield (
            f"h = {manifest.honest_shares} honest shares of noise are certain, and the site asks for "
            f"{limits.smallest_honest_shares}"
        )
    if not any(model.is_of(manifest) for model in limits.models):
        model = f"{manifest.study.model.name} ({manifest.model_sha256})"
        yield f"its base model is {model}, and the site allows {_listed([str(model) for model in limits.models])}"
    if manifest.package_version not in limits.package_versions:
        yield f"it runs version {manifest.package_version}, and the site allows {_listed(limits.package_versions)}"
    if limits.package_sha256 is not None and manifest.package_sha256 not in limits.package_sha256:
        yield (
            f"its program has SHA-256 {manifest.package_sha256}, and the site allows {_listed(limits.package_sha256)}"
        )
    yield from _unverified(manifest, name, limits.verified_peers)


def _misquoted(policy: Policy, site: Site) -> Iterator[str]:
    """What the study says of the site, and the site does not."""
    if site.sensitivity == "synthetic" and not policy.data.synthetic_data_only:
        yield "it calls this site's records synthetic, and the site does not (synthetic_data_only = false)"
    for field, said, own in (
        ("largest_epsilon", site.largest_epsilon, policy.study.largest_epsilon),
        ("budget_epsilon", site.budget_epsilon, policy.data.epsilon),
    ):
        if said not in (None, own):
            yield f"it says that the site's {field} is {said:g}, and by its policy it is {own:g}"


def _unverified(manifest: Manifest, name: str, verified: tuple[str, ...]) -> Iterator[str]:
    """Keys that nobody compared may all be one party's: their sites count towards those assumed corrupt."""
    if manifest.server_key not in verified:
        yield f"the server's key {manifest.server_key} is not among verified_peers"
    sites = [site for site, key in manifest.site_keys.items() if site != name and key not in verified]
    assumed = manifest.study.privacy.corrupt_sites
    if len(sites) > assumed:
        yield (
            f"the keys of {len(sites)} sites ({', '.join(sites)}) are not among verified_peers, and it assumes at most "
            f"{assumed} corrupt"
        )


def _above(called: str, value: float, largest: float) -> Iterator[str]:
    if value > largest:
        yield f"{called} = {value}, and the site allows {largest}"


def _listed(values: list[str] | tuple[str, ...]) -> str:
    return ", ".join(values) or "none"
