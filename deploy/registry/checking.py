"""That a registry is what it says: its ledger, and of each release every claim of its study, from what is kept."""

from collections.abc import Callable
from dataclasses import dataclass

from ...common.crypto.identity import shown_key, written_out
from ...common.errors import GrandRoundsError, OtherProgramError, StudyError
from ...server.report.claim import count
from ..verify.case import Case, DisagreesError, differences
from .entries import Facts
from .facts import facts_of, require_verified
from .folder import RegistryFolder
from .releases import Registry, Release


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What holds of a registry, in ``lines``; and of each release the claims of its study that stay open here."""

    lines: list[str]
    still_open: dict[str, tuple[str, ...]]


def check(
    folder: RegistryFolder, registry: Registry, *, key: str | None, head: str | None, tell: Callable[[str], None]
) -> Checked:
    """What holds. Raises StudyError, LedgerError and StorageError where something does not.

    OtherProgramError is raised where all else holds, but some studies are another version's.

    ``key`` and ``head`` are what somebody noted before; without them, whose registry it is, and that none of its end is
    missing, stays open, and is said.
    """
    said = [f"the ledger is whole: {count(len(registry.ledger), 'entry', 'entries')}, chained and signed by one key"]
    if key is None:
        said.append(f"whose key it is was not compared (--key): {shown_key(registry.key)}")
    elif written_out(key) != registry.key:
        raise StudyError(
            f"the registry's key is {shown_key(registry.key)}, and not the one that was given",
            why="somebody else wrote this registry",
            fix="get the registry from whoever keeps it, and compare the key by telephone",
        )
    if head is None:
        said.append("that no entry was taken off its end was not compared with a head noted earlier (--head)")
    elif written_out(head) not in {registry.ledger.head_at(length) for length in range(1, len(registry.ledger) + 1)}:
        raise StudyError(
            f"the ledger never had the head {head}",
            why="entries were taken off its end, or it was written anew: a withdrawal may be missing",
            fix="keep this folder as it is, and compare it with other copies of the registry",
        )
    else:
        said.append("it continues what it was at the head that was given")
    by_others, still_open = [], {}
    for release in registry.releases.values():
        tell(f"recomputing every claim of {release.adapter}")
        case = folder.case(release.released)
        try:
            left = require_verified(case, without_privacy=release.released.facts.epsilon is None)
        except OtherProgramError as error:
            by_others.append(f"{release.adapter}: {error.what}; {_compared_as_far_as_read(release, case)}")
            continue
        _check_facts(release, facts_of(case))
        still_open[str(release.adapter)] = left
        rest = f", but for what stays open here: {', '.join(left)}" if left else ""
        said.append(f"{release.adapter} is what was released, and its study's claims hold{rest}")
    if by_others:
        raise OtherProgramError(
            f"the ledger is whole and every release is what was released, but of {len(by_others)} of "
            f"{len(registry.releases)} releases this program cannot confirm the study. {'. '.join(by_others)}",
            why="their claims rest on what another version signed, and wrote in its own form",
            fix="verify the folder of each, below releases/, with the version that its study ran: grandrounds verify",
        )
    return Checked(lines=said, still_open=still_open)


def _check_facts(release: Release, facts: Facts) -> None:
    known, found = (one.model_dump(mode="json") for one in (release.released.facts, facts))
    if any(differences(known, found)):  # figures of attacks are computed anew, and their last digits the machine's
        raise StudyError(
            f"what the registry says of {release.adapter} is not what its study's report says",
            why="its privacy or quality would be taken for another",
            fix="do not use the release; compare the registry with other copies of it",
        )


def _compared_as_far_as_read(release: Release, case: Case) -> str:
    """Of a study of another version: whether what the registry says of it was compared with its report."""
    try:
        facts = facts_of(case)
    except (GrandRoundsError, DisagreesError, KeyError, TypeError, ValueError):  # in a form that only that one reads
        return "what the registry says of it, its privacy among it, was compared with no report"
    _check_facts(release, facts)
    return "what the registry says of it is what its report says"
