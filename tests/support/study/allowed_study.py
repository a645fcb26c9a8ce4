"""A study, and the policy of one of its sites that allows it at every limit."""

from typing import Any

from grandrounds.client.budget.policy import Policy
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.schema import validated
from support.study.federation import small_manifest, small_study

SITE = "site-2"
IDENTITIES = {f"site-{number}": Identity.generate() for number in range(1, 6)}
SERVER = Identity.generate()
KEYS = [identity.public_key for identity in (SERVER, *IDENTITIES.values())]
NOISY = {"noise": True, "noise_multiplier": 4.0, "target_epsilon": 2.0, "delta": 1e-4}
NOISELESS = {"noise": False, "noise_multiplier": None, "target_epsilon": None}
ALLOWED: dict[str, dict[str, Any]] = {
    "study": {
        "largest_epsilon": 2.0,
        "largest_delta": 1e-4,
        "trust": ["distributed", "local"],
        "models": [{"name": "builtin", "sha256": "22" * 32}],
        "verified_peers": KEYS,
    },
    "data": {"epsilon": 4.0, "delta": 1e-3},
}


def manifest(*, trust="distributed", privacy=None, training=None, **changes):
    """The manifest at its limits, with changes to its privacy, its training or to the whole."""
    study = small_study(trust=trust, privacy={**NOISY, **(privacy or {})}, training=training)
    return small_manifest(study, IDENTITIES, SERVER, **({"dimension": 7} | changes))


def policy(*, data=None, **study):
    """The policy with changes to its ``data`` or ``study``."""
    return validated(Policy, {"study": ALLOWED["study"] | study, "data": ALLOWED["data"] | (data or {})})
