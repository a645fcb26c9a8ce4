"""That a registry is what it says: its ledger, and of each release every claim of its study, from what is kept."""

from collections.abc import Callable

from ...common.crypto.identity import shown_key
from ...common.errors import OtherProgramError, StudyError
from ...server.report.claim import count
from ..verify.case import differences
from .facts import facts_of, require_verified
from .folder import RegistryFolder
from .releases import Registry


def check(
    folder: RegistryFolder, registry: Registry, *, key: str | None, head: str | None, tell: Callable[[str], None]
) -> list[str]:
    """What holds, in lines. Raises StudyError, LedgerError and StorageError where something does not.

    OtherProgramError is raised where all else holds, but some studies are another version's.

    ``key`` and ``head`` are what somebody noted before; without them, whose registry it is, and that none of its end is
    missing, stays open, and is said.
    """
    said = [f"the ledger is whole: {count(len(registry.ledger), 'entry', 'entries')}, chained and signed by one key"]
    if key is None:
        said.append(f"whose key it is was not compared (--key): {shown_key(registry.key)}")
    elif "".join(key.split()).lower() != registry.key:
        raise StudyError(
            f"the registry's key is {shown_key(registry.key)}, and not the one that was given",
            why="somebody else wrote this registry",
            fix="get the registry from whoever keeps it, and compare the key by telephone",
        )
    if head is None:
        said.append("that no entry was taken off its end was not compared with a head noted earlier (--head)")
    elif head not in {registry.ledger.head_at(length) for length in range(1, len(registry.ledger) + 1)}:
        raise StudyError(
            f"the ledger never had the head {head}",
            why="entries were taken off its end, or it was written anew: a withdrawal may be missing",
            fix="keep this folder as it is, and compare it with other copies of the registry",
        )
    else:
        said.append("it continues what it was at the head that was given")
    by_others = []
    for release in registry.releases.values():
        tell(f"recomputing every claim of {release.adapter}")
        case = folder.case(release.released)
        try:
            require_verified(case, without_privacy=release.released.facts.epsilon is None)
        except OtherProgramError as error:
            by_others.append(f"{release.adapter}: {error.what}")
            continue
        known, found = (facts.model_dump(mode="json") for facts in (release.released.facts, facts_of(case)))
        if any(differences(known, found)):  # figures of attacks are computed anew, and their last digits the machine's
            raise StudyError(
                f"what the registry says of {release.adapter} is not what its study's report says",
                why="its privacy or quality would be taken for another",
                fix="do not use the release; compare the registry with other copies of it",
            )
        said.append(f"{release.adapter} is what was released, and its study's claims hold")
    if by_others:
        raise OtherProgramError(
            f"the ledger is whole and every release is what was released, but of {len(by_others)} of "
            f"{count(len(registry.releases), 'release')} this program cannot confirm the study. {'. '.join(by_others)}",
            why="their claims rest on what another version signed, and wrote in its own form",
            fix="verify the folder of each, below releases/, with the version that its study ran: grandrounds verify",
        )
    return said
