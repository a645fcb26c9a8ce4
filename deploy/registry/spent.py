"""What the studies of a registry cost the patients of each data asset, one after another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .entries import Asset
from .releases import Registry, Release

NOTE: Final = (
    "ε and δ of studies that read the same patients add up, in whatever order they were chosen (Rogers, Roth, Ullman "
    "and Vadhan 2016); withdrawal and rollback give nothing back. A patient of several assets adds up theirs. Counted "
    "are the studies of this registry alone: what a site's patients have left of their budget, `grandrounds client "
    "budget` says there."
)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A study's cost to a patient of an asset: its own, and ``epsilon`` and ``delta`` of all studies up to it.

    None, here and from here on, where a study had no noise or claimed nothing of patients.
    """

    asset: Asset
    release: Release
    own_epsilon: float | None
    epsilon: float | None
    delta: float | None


def spent(registry: Registry) -> Iterator[Spent]:
    """What each asset's patients spent, asset by asset, each from its first study on.

    An asset is what one key calls so: sites have names in a study alone.
    """
    read: dict[tuple[str, str], list[tuple[Asset, Release]]] = {}
    for release in registry.releases.values():
        for asset in release.released.assets:
            read.setdefault((asset.called, asset.key), []).append((asset, release))
    for place in sorted(read):
        epsilon: float | None = 0.0
        delta: float | None = 0.0
        for asset, release in read[place]:
            facts = release.released.facts
            own = (facts.epsilon, facts.delta) if facts.privacy_unit == "patient" else (None, None)
            epsilon, delta = _sum(epsilon, own[0]), _sum(delta, own[1])
            yield Spent(asset=asset, release=release, own_epsilon=own[0], epsilon=epsilon, delta=delta)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
