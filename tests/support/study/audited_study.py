"""A small study that is audited, and its twin."""

from typing import Any

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.study.manifest import Manifest
from grandrounds.deploy.audit.twin import Twin
from support.study.federation import small_manifest, small_study

SEED = bytes(range(32))
_SERVER = Identity.generate()
_SITES = {f"site-{number}": Identity.generate() for number in range(1, 5)}


def audited_manifest(
    *, trust: str = "distributed", attempts: int = 3, noise_multiplier: float | None = 1.0, **privacy: Any
) -> Manifest:
    """Of four sites, three of which answer, so that noise has a layer; all units are drawn by default."""
    study = small_study(
        (4, 4, 4, 4),
        trust=trust,
        noise_multiplier=noise_multiplier,
        privacy=privacy,
        training={"max_attempts": attempts},
        secagg={"threshold": 3},
    )
    return small_manifest(study, _SITES, _SERVER, dimension=1024)


def twin_of(manifest: Manifest, *, canaries: int = 40) -> Twin:
    """Its twin, with the same coins at every call."""
    return Twin.of(manifest, canaries=canaries, seed=SEED)
