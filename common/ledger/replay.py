"""Replays a ledger entry by entry, and stops at the first that an honest study could not contain.

Sites run it before they answer a Begin, the server before it writes, and ``grandrounds verify`` on what is left. It
needs nothing but the entries: manifests, countersignatures and the sites' own statements are in them.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Self, TypeVar

from ..errors import GrandRoundsError, OtherProgramError
from ..protocol.envelope import Envelope
from ..protocol.messages import Advert, Begin, Closed, Consistency, MaskedInput, Message, Shares, Unmask, begin_hash
from ..secagg.noise_chain import shown_layer_keys
from ..secagg.parameters import SecaggParameters
from ..secagg.transcript import check_group, transcript_hash, verify_sender
from ..study.manifest import Manifest
from ..study.succession import check_successor, check_units
from ..system.code_pin import check_form_of
from . import entries
from .chain import EMPTY_LEDGER_HEAD, Entry, EntryType, Ledger, UnknownFormError, author_of, broken
from .entries import SignedStatement
from .records import AttemptRecord, RoundRecord

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class _Counter:
    """A site's charge counter, as it was told when ``attempts`` had begun, of which it covers all."""

    charges: int = 0
    attempts: int = 0


@dataclass
class VerifiedLedger:
    """What a ledger says, once every entry was checked against those before it.

    Attributes:
        manifests: the first, and its successors.
        place: length and head of the ledger that the last of them continues, which its countersignatures name.
        countersigned: the sites that agreed to the last. ``reservations`` is which of all its own each then stated.
        attempts: in the order of their serials, which are 1, 2, 3, …
        rounds: those that were closed.
        closed: how the study ended, if it did. ``closing`` is what sites sign then, ``closing_signatures`` who did.
    """

    ledger: Ledger = field(default_factory=Ledger)
    manifests: list[Manifest] = field(default_factory=list)
    place: tuple[int, str] = (0, EMPTY_LEDGER_HEAD)
    countersigned: dict[str, str] = field(default_factory=dict)
    reservations: dict[str, int] = field(default_factory=dict)
    endorsed: set[str] = field(default_factory=set)
    attempts: list[AttemptRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)
    closed: entries.StudyClosed | None = None
    closing_signatures: set[str] = field(default_factory=set)
    # The manifest's, which would otherwise be hashed again for every statement.
    _secagg: SecaggParameters | None = None
    _counters: dict[str, _Counter] = field(default_factory=dict)
    closing: Closed | None = None

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> Self:
        """A whole ledger, replayed; raises LedgerError at the first entry that cannot be."""
        verified = cls()
        verified.extend(lines)
        return verified

    def continued(self, lines: Sequence[bytes]) -> Self:
        """This ledger with what ``lines`` add, as a new one; raises LedgerError and leaves this one as it is."""
        verified = copy.copy(self)
        for container in fields(self):
            setattr(verified, container.name, copy.copy(getattr(self, container.name)))
        verified.ledger = Ledger(list(self.ledger))
        verified.extend(lines)
        return verified

    def extend(self, lines: Iterable[bytes]) -> None:
        """Check and add the entries among ``lines`` that are not here yet.

        Raises LedgerError at the first that cannot be, OtherProgramError at one of a form that this program does not
        write where another made the study and its server signed it; what was replayed is then to be thrown away.
        """
        for line in lines:
            try:
                for entry in self.ledger.continuation([line]):
                    self.take(entry)
            except UnknownFormError:
                if self.manifests and author_of(line) == self.manifest.server_key:
                    check_form_of(self.manifest.canonical)
                raise

    @property
    def manifest(self) -> Manifest:
        """The manifest in force; raises LedgerError where there is none yet."""
        if not self.manifests:
            raise broken("the ledger does not begin with a study")
        return self.manifests[-1]

    @property
    def charges(self) -> dict[str, int]:
        """The highest charge counter that each site told."""
        return {site: counter.charges for site, counter in self._counters.items()}

    def most_charges(self, site: str) -> int:
        """The most that ``site`` can have paid, by what the ledger has."""
        known = self._counters.get(site, _Counter())
        return known.charges + sum(attempt.may_have_charged(site) for attempt in self.attempts[known.attempts :])

    def possible_charges(self, site: str) -> range:
        """The charge counters that ``site`` may tell in the attempt that was begun last."""
        known = self._counters.get(site, _Counter())
        since = self.attempts[known.attempts : -1]
        return range(known.charges, known.charges + sum(attempt.may_have_charged(site) for attempt in since) + 1)

    @property
    def agreed(self) -> bool:
        """Whether all sites of the manifest in force, and t of the roster before it, have signed it."""
        everyone = self._parameters.names
        return set(everyone) <= self.countersigned.keys() and (
            len(self.manifests) == 1 or len(self.endorsed) >= self.manifests[-2].threshold
        )

    def is_in_force(self, manifest: Manifest) -> bool:
        """Whether the study goes on under ``manifest``: it is the last, and agreed to."""
        return bool(self.manifests) and self.manifest == manifest and self.agreed

    def take(self, entry: Entry) -> None:
        """Check an entry that ``Ledger.continuation`` gave, and add it.

        Raises LedgerError, and OtherProgramError for another version's manifest; what was replayed is then to be
        thrown away.
        """
        try:
            over = self.closed is not None and entry.type != EntryType.CLOSING_SIGNATURE
            self._require(not over, "the study was closed before")
            _TAKES[entry.type](self, entry)
            self._require(entry.author == self.manifest.server_key, "it is not signed by the study's server")
        except (OtherProgramError, UnknownFormError):
            raise
        except GrandRoundsError as error:
            raise broken(f"entry {entry.sequence} ({entry.type}) cannot be: {error.what}") from error
        self.ledger.add([entry])

    def check_next(self, manifest: Manifest) -> None:
        """Raises LedgerError or StudyError unless ``manifest`` may be entered here."""
        if self.manifests:
            self._require(self.agreed, "the manifest before it was never agreed to")
            check_successor(self.manifest, manifest)
            for earlier in self.manifests:
                check_units(earlier, manifest)
        elif (manifest.version, manifest.previous) != (1, "00" * 32):
            raise broken("it is a successor, and what it succeeds is missing")

    def _take_study(self, entry: Entry) -> None:
        manifest = entries.StudyEntry.of(entry).manifest
        self.check_next(manifest)
        self.manifests.append(manifest)
        self.place = (entry.sequence, entry.previous)
        self._secagg = manifest.secagg_parameters
        self.countersigned, self.reservations, self.endorsed = {}, {}, set()

    def _take_countersignature(self, entry: Entry) -> None:
        signed = entries.CountersignatureEntry.of(entry).countersignature
        self._require(not self._attempts_of_manifest, "attempts of this manifest have begun")
        self._require(signed.manifest == self._parameters.manifest, f"{signed.site} signed another manifest")
        place = (signed.ledger_length, signed.ledger_head)
        self._require(place == self.place, f"{signed.site} signed the manifest after another ledger")
        signed.verify()
        is_site = self.manifest.site_keys.get(signed.site) == signed.key
        was_site = len(self.manifests) > 1 and self.manifests[-2].site_keys.get(signed.site) == signed.key
        self._require(is_site or was_site, f"the key is not that of {signed.site}")
        is_new = (is_site and signed.site not in self.countersigned) or (was_site and signed.site not in self.endorsed)
        self._require(is_new, f"{signed.site} signed before")
        if is_site:
            self.countersigned[signed.site] = signed.signature
            self.reservations[signed.site] = signed.reservation
        if was_site:
            self.endorsed.add(signed.site)

    def _take_attempt_begun(self, entry: Entry) -> None:
        begun = entries.AttemptBegun.of(entry)
        self._require(self.agreed, "the manifest lacks signatures of its sites")
        self._require(
            begun.attempt == len(self.attempts) + 1, f"attempt {begun.attempt} follows attempt {len(self.attempts)}"
        )
        self._require(begun.attempt <= self.manifest.max_attempts, "the schedule has no attempt left")
        self._require(begun.round == len(self.rounds) + 1, f"round {begun.round} follows round {len(self.rounds)}")
        self._require(begun.round <= self.manifest.study.training.rounds, "all rounds are closed")
        adapter = self.rounds[-1].adapter_sha256 if self.rounds else self.manifest.adapter_sha256
        self._require(begun.adapter_sha256 == adapter, "it starts from another adapter than the last round left")
        check_group(self._parameters, begun.invited, what="the invitation", within=self._parameters.names)
        begin = begin_of(entry)
        manifest = self._parameters.manifest
        self.attempts.append(
            AttemptRecord(
                attempt=begun.attempt,
                round=begun.round,
                manifest=manifest,
                begin_hash=begin_hash(begin, manifest=manifest, attempt=begun.attempt),
                invited=begun.invited,
            )
        )

    def _take_attempt_ended(self, entry: Entry) -> None:
        ended = entries.AttemptEnded.of(entry)
        last = self._last_attempt
        self._require(
            ended.attempt == last.attempt and not last.ended, f"attempt {ended.attempt} is not the one that runs"
        )
        self._require(
            self._attempts_of_manifest, "its manifest was succeeded: no site can have signed it under this one"
        )
        adverts = self._opened(ended.adverts, Advert, within=last.invited)
        masked = self._opened(ended.masked_inputs, MaskedInput, within=adverts)
        views = self._opened(ended.consistencies, Consistency, within=masked)
        for site, (_, advert) in adverts.items():
            self._require(advert.begin_hash == last.begin_hash, f"{site} was shown another Begin")
            self._check_charges(site, advert.charge_counter)
            self._counters[site] = _Counter(advert.charge_counter, last.attempt - 1)
        for site, (_, masked_input) in masked.items():
            charges = masked_input.charge_counter
            self._require(charges == adverts[site][1].charge_counter + 1, f"{site} answered without one charge")
            self._counters[site] = _Counter(charges, last.attempt)
        survivors = tuple(masked)
        transcript = transcript_hash(last.begin_hash, [envelope for envelope, _ in adverts.values()]).hex()
        for site, (_, view) in views.items():
            self._require(view.transcript == transcript, f"{site} signed another set of adverts than the ledger has")
            self._require(view.u3 == survivors, f"{site} signed other survivors than the ledger has")
            self._require(view == next(iter(views.values()))[1], "the sites signed different views")
            self._require(set(survivors) <= set(view.u2) <= set(adverts), f"{site} signed an impossible view")
        unmasks = self._opened(ended.unmasks, Unmask, within=views)
        if ended.unmasked:
            helpers, needed = len(unmasks), self.manifest.threshold
            self._require(helpers >= needed, f"{helpers} sites gave their shares, {needed} must")
        self._check_dropouts(ended.dropouts, last.invited, adverts, masked, views, unmasks)
        shown = [
            site
            for site, (_, unmask) in unmasks.items()
            if shown_layer_keys(
                self._parameters,
                survivors=survivors,
                attempt=last.attempt,
                sender=site,
                link=unmask.noise_link,
                end=adverts[site][1].noise_end,
            )
        ]
        self.attempts[-1] = replace(
            last,
            ended=True,
            unmasked=ended.unmasked,
            survivors=survivors if ended.unmasked else (),
            shown=tuple(shown) if ended.unmasked else (),
            dropouts=dict(ended.dropouts),
            charged=tuple(site for site in adverts if ended.dropouts.get(site) != Shares.exchange),
        )

    def _check_dropouts(
        self,
        dropouts: Mapping[str, str],
        invited: Iterable[str],
        adverts: Iterable[str],
        masked: Iterable[str],
        views: Mapping[str, tuple[Envelope, Consistency]],
        unmasks: Iterable[str],
    ) -> None:
        """Where sites were lost follows from who signed what, but for one case in which the server's word stands.

        That is in an attempt without views at which of two exchanges a site was lost.
        """
        expected = dict.fromkeys(set(invited) - set(adverts), Advert.exchange)
        for _, view in views.values():
            expected |= dict.fromkeys(set(adverts) - set(view.u2), Shares.exchange)
            expected |= dict.fromkeys(set(view.u2) - set(masked), MaskedInput.exchange)
            expected |= dict.fromkeys(set(masked) - views.keys(), Consistency.exchange)
        if len(views) >= self.manifest.threshold:
            expected |= dict.fromkeys(views.keys() - set(unmasks), Unmask.exchange)
        rest = {site: exchange for site, exchange in dropouts.items() if expected.get(site) != exchange}
        possible: set[tuple[str, str]] = set()
        if not views:
            lost = set(adverts) - set(masked)
            possible |= {(site, exchange) for site in lost for exchange in (Shares.exchange, MaskedInput.exchange)}
            possible |= {(site, Consistency.exchange) for site in masked}
        holds = expected.items() <= dropouts.items() and rest.items() <= possible
        self._require(holds, "its dropouts are not those that follow from what the sites signed")

    def _take_round_closed(self, entry: Entry) -> None:
        closed = entries.RoundClosed.of(entry)
        last = self._last_attempt
        # An attempt closes the round that it was begun for, and that one once.
        this = (closed.attempt, closed.round) == (last.attempt, last.round) and last.round == len(self.rounds) + 1
        self._require(this and last.unmasked, f"round {closed.round} has no attempt that was unmasked")
        averages = self.manifest.study.training.leaves_average
        self._require(averages == (closed.average_sha256 is not None), "it averages rounds otherwise than the study")
        self.rounds.append(
            RoundRecord(
                survivors=last.survivors,
                **closed.model_dump(),
            )
        )

    def _take_study_closed(self, entry: Entry) -> None:
        closed = entries.StudyClosed.of(entry)
        self._require(self.agreed, "the manifest lacks signatures of its sites")
        self._require(closed.charges == self.charges, "its charges are not those that the sites told")
        self.closed = closed
        self.closing = Closed(ledger_length=entry.sequence + 1, ledger_head=entry.hash)

    def _take_closing_signature(self, entry: Entry) -> None:
        signed = entries.ClosingSignature.of(entry)
        self._require(self.closed is not None, "the study is not closed")
        envelope, closed = self._open(signed.closed, Closed, attempt=len(self.attempts), senders=self._parameters.names)
        self._require(closed == self.closing, f"{envelope.sender} signed another ledger")
        self._require(envelope.sender not in self.closing_signatures, f"{envelope.sender} signed before")
        self.closing_signatures.add(envelope.sender)

    def _opened(
        self, statements: Iterable[SignedStatement], message: type[M], *, within: Iterable[str]
    ) -> dict[str, tuple[Envelope, M]]:
        """Statements of the running attempt by site, each site once, in roster order."""
        senders = tuple(within)
        attempt = self._last_attempt.attempt
        opened = [self._open(signed, message, attempt=attempt, senders=senders) for signed in statements]
        names = [envelope.sender for envelope, _ in opened]
        self._require(names == list(self._parameters.in_order(set(names))), f"its {message.exchange}s are out of order")
        return {envelope.sender: (envelope, body) for envelope, body in opened}

    def _open(
        self, signed: SignedStatement, message: type[M], *, attempt: int, senders: Sequence[str]
    ) -> tuple[Envelope, M]:
        envelope = Envelope.of_statement(signed.statement)
        verify_sender(self._parameters, envelope, attempt=attempt, senders=senders)
        return envelope, message.of(envelope)

    def _check_charges(self, site: str, charges: int) -> None:
        possible = self.possible_charges(site)
        if charges < possible.start:
            raise broken(
                f"the charge counter of {site} fell from {possible.start} to {charges}: its state was set back, or the "
                "server shows two histories"
            )
        if charges >= possible.stop:
            raise broken(
                f"{site} paid for more attempts than the ledger has it in: something that it signed is missing"
            )

    @property
    def _parameters(self) -> SecaggParameters:
        if self._secagg is None:
            raise broken("the ledger does not begin with a study")
        return self._secagg

    @property
    def _last_attempt(self) -> AttemptRecord:
        self._require(bool(self.attempts), "no attempt has begun")
        return self.attempts[-1]

    @property
    def _attempts_of_manifest(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].manifest == self._parameters.manifest

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise broken(otherwise)


_TAKES: dict[StrEnum, Callable[[VerifiedLedger, Entry], None]] = {
    EntryType.STUDY: VerifiedLedger._take_study,
    EntryType.COUNTERSIGNATURE: VerifiedLedger._take_countersignature,
    EntryType.ATTEMPT_BEGUN: VerifiedLedger._take_attempt_begun,
    EntryType.ATTEMPT_ENDED: VerifiedLedger._take_attempt_ended,
    EntryType.ROUND_CLOSED: VerifiedLedger._take_round_closed,
    EntryType.STUDY_CLOSED: VerifiedLedger._take_study_closed,
    EntryType.CLOSING_SIGNATURE: VerifiedLedger._take_closing_signature,
}


def begin_of(entry: Entry) -> Begin:
    """The Begin of the attempt that ``entry`` records: the ledger that it names ends with ``entry``."""
    begun = entries.AttemptBegun.of(entry)
    return Begin(
        round=begun.round,
        invited=begun.invited,
        adapter_sha256=begun.adapter_sha256,
        ledger_length=entry.sequence + 1,
        ledger_head=entry.hash,
    )
