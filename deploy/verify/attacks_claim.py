"""That attacks in a study's folder are of its adapter and of nobody, and that the report has their figures."""

from typing import Final

from ...common.study.artefacts import ATTACKS
from ...server.report.attacks import Attacked
from .adapter_claims import last_adapter
from .case import AbsentError, Case, Claim, DisagreesError, OpenError, differences


def _attacked(case: Case) -> str:
    """Of a study without attacks there is nothing to check; how they are made is said."""
    stated = case.found("attacks")
    if ATTACKS not in case.evidence.files and ATTACKS not in case.evidence.faults:
        if stated is not None:
            raise OpenError(f"the report states what attacks found, and {ATTACKS}, which its server holds, is not here")
        raise AbsentError("none are attached: `grandrounds adapter attack DIR --attach` makes them, of a simulation")
    adapter_sha256, _ = last_adapter(case.verified)
    found = Attacked.of(case.read(ATTACKS), case.verified.manifest, adapter_sha256=adapter_sha256)
    if stated is not None and any(differences(stated, found.model_dump(mode="json"))):
        raise DisagreesError(f"what the report states is not what follows from {ATTACKS}")
    return found.in_words


ATTACKS_CLAIM: Final = Claim(
    name="attacks",
    claim="Attacks that are attached are of this adapter and of nobody, and their scores bear out what they found",
    recomputed_from=f"{ATTACKS}, the manifest and the ledger",
    check=_attacked,
)
