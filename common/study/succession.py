"""Successors: how a running study gets another roster, server key or program version, and what must stay as it was."""

from typing import Any, Final

from ..errors import StudyError
from .manifest import Manifest

# Whatever is not named here stays. Privacy parameters, c among them, and the schedule are not: the claim is that of
# one schedule, fixed before the first record was read. Chosen along the way, they could not be composed as one.
MAY_CHANGE: Final = frozenset(
    {
        "version",
        "previous",
        "site_keys",
        "server_key",
        "package_version",
        "package_sha256",
        "app_sha256",
        "connection_sha256",
        # Who takes part, and whom one asks; what the study is for stays.
        "study.about.institutions",
        "study.about.contact",
        "study.about.dated",
        "study.about.ends",
        # An audit is of one roster and one program; what is audited may not change.
        "study.about.audit",
        "study.sites",
        "study.secagg.threshold",
        "study.training.answer_after_s",
        "study.training.deadline_s",
        "study.training.physical_batch",
    }
)


def check_successor(previous: Manifest, successor: Manifest) -> None:
    """Raises StudyError unless ``successor`` may follow ``previous``: sites join, leave or change keys, no more."""
    _require(successor.version == previous.version + 1, f"version {successor.version} after {previous.version}")
    _require(successor.previous == previous.sha256, "it names another manifest as the one before it")
    before, after = _leaves(previous.model_dump(mode="json")), _leaves(successor.model_dump(mode="json"))
    changed = sorted(field for field in before.keys() | after.keys() if before.get(field) != after.get(field))
    changed = [field for field in changed if field not in MAY_CHANGE]
    _require(not changed, f"it changes {', '.join(changed)}")
    check_units(previous, successor)


def check_units(earlier: Manifest, later: Manifest) -> None:
    """Raises StudyError where a site states other units in ``later``: coming back would update them, too."""
    stated = {site.name: (site.nominal_units, site.max_units) for site in earlier.study.sites}
    updated = [
        site.name
        for site in later.study.sites
        if stated.get(site.name) not in (None, (site.nominal_units, site.max_units))
    ]
    _require(not updated, f"it changes the units of {', '.join(updated)}, which are never updated")


def _leaves(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names; site keys and lists stay whole."""
    leaves: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and name != "site_keys":
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StudyError(
            f"the manifest cannot follow the one before it: {otherwise}",
            why="one schedule, fixed beforehand, is what the study's claim covers",
            fix="leave that as it was, or start a study of its own with a budget of its own",
        )
