"""What stands in a registry's ledger: one model per type of entry."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from ...common.crypto.identity import Hex32, Name
from ...common.ledger.chain import Book, Entry
from ...common.ledger.entries import Body
from ...common.schema import Section, Spelt, Words
from ...common.study.study import PrivacyUnit
from ...server.report.findings import Findings
from ...server.report.groups import Estimate
from ...server.report.utility import Perplexity

Moment = Annotated[str, Spelt(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", "needs a time, as 2026-11-30T12:00:00Z")]


class RegistryEntry(StrEnum):
    """What an entry records."""

    OPENED = "registry-opened"
    RELEASED = "adapter-released"
    WITHDRAWN = "adapter-withdrawn"
    CHOSEN = "version-chosen"
    RECEIVED = "adapter-received"
    INCIDENT = "incident"


REGISTRY_BOOK: Final = Book(label=b"grandrounds/registry/v1\n", types=RegistryEntry)


class Noted(Body):
    """Any entry: when it was made by the clock of whoever made it, and as which user."""

    at: Moment
    by: Words


class Opened(Noted):
    """The first entry: what people call the registry."""

    type = RegistryEntry.OPENED
    called: Words


class Asset(Section):
    """Whose patients a study read: a site, by its key, and what the site calls this set of them."""

    site: Name
    key: Hex32
    called: Name


class Facts(Section):
    """What is known of a release from its study's folder alone, as it was verified.

    ``epsilon`` and ``delta`` are for a patient at ``sites_per_patient`` sites or fewer; None without privacy. ``gain``
    is that of the whole evaluation set, in nats per token; None where it has too few patients. ``attacks``
    are a simulation's, where its folder had them.
    """

    study_id: Hex32
    manifest_sha256: Hex32
    title: Words | None
    setting: Literal["simulation", "federation"]
    base_model: str
    base_sha256: Hex32
    privacy_unit: PrivacyUnit
    sites_per_patient: Annotated[int, Field(ge=1)]
    epsilon: Annotated[float, Field(gt=0)] | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    evaluation: Words
    perplexity_before: Perplexity | None
    perplexity_after: Perplexity | None
    gain: Estimate | None
    attacks: Findings | None = None
    files: dict[str, Hex32]


class Reference(Section):
    """A version of an adapter, written ``name@version``."""

    name: Name
    version: Annotated[int, Field(ge=1)]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Released(Noted):
    """An adapter that came to be a release; ``unestablished`` are claims of its study that were open then."""

    type = RegistryEntry.RELEASED
    adapter: Reference
    facts: Facts
    assets: tuple[Asset, ...] = Field(strict=False)
    unestablished: tuple[Name, ...] = Field(default=(), strict=False)


class Withdrawn(Noted):
    """A release that nobody is to use any more."""

    type = RegistryEntry.WITHDRAWN
    adapter: Reference
    reason: Words


class Chosen(Noted):
    """The version that is in use from here on, usually an earlier one."""

    type = RegistryEntry.CHOSEN
    adapter: Reference
    reason: Words


class Received(Noted):
    """Who was given a release."""

    type = RegistryEntry.RECEIVED
    adapter: Reference
    receiver: Words


class Incident(Noted):
    """What happened, and which releases it is about, if any."""

    type = RegistryEntry.INCIDENT
    what: Words
    about: tuple[Reference, ...] = Field(default=(), strict=False)


_BODIES: Final[dict[StrEnum, type[Noted]]] = {
    body.type: body for body in (Opened, Released, Withdrawn, Chosen, Received, Incident)
}


def body_of(entry: Entry) -> Noted:
    """What an entry says; raises LedgerError where it has another form."""
    return _BODIES[entry.type].of(entry)
