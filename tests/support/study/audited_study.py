"""A small study that is audited, its twin, and what an audit leaves."""

from typing import Any

import numpy as np

from grandrounds.common.audit.coins import bits_of, coins
from grandrounds.common.audit.evidence import AuditEvidence, CanaryScores, Protection
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


def audit_of(
    manifest: Manifest,
    *,
    seen: float = 0.5,
    seed: int = 1,
    lacking: Protection = "half the noise",
    lacks: float = 1.0,
    synthetic_notes: int | None = None,
) -> bytes:
    """Evidence in which canaries that were in stand out by so much, and by what it ``lacks`` where something is.

    Where there are ``synthetic_notes``, they show nothing with noise, and each text canary without.
    """
    rng, bits = np.random.default_rng(seed), bits_of(coins("gradient", 60, seed=SEED))
    sizes: tuple[tuple[Protection, float], ...] = (("as claimed", seen), (lacking, lacks))
    canaries = [
        CanaryScores.of(
            "gradient",
            protection,
            scores=size * bits + rng.standard_normal(60),
            bits=bits,
            foils=rng.standard_normal(60),
        )
        for protection, size in sizes
    ]
    if synthetic_notes:
        found = bits_of(coins("synthetic notes", 60, seed=SEED))
        canaries += [
            CanaryScores.of("synthetic notes", "as claimed", scores=~found, bits=found),
            CanaryScores.of("synthetic notes", "noise off", scores=found, bits=found),
        ]
    return AuditEvidence.of(
        twin=manifest, canaries=canaries, seed=SEED.hex(), synthetic_notes=synthetic_notes
    ).to_json()
