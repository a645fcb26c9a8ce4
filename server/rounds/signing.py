"""The beginning of a study: every site's signature on its manifest, without which no attempt begins."""

from ...common.errors import EnvelopeError, ProtocolError
from ...common.ledger import entries
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import SERVER, Agreed, Invitation, Refusal, pack
from ...common.secagg.transcript import seal_message, verify_sender
from ...common.study.manifest import Countersignature, Manifest
from ...common.system.content import Content
from .ledger_writer import LedgerWriter

# The serial of what is said before the first attempt.
BEFORE = 0


class Signing:
    """One exchange: each site that has joined signs the manifest.

    A new manifest is entered only with the signatures of all its sites: one that some never sign would end the study.
    Of a roster before it, at least t must be among them under the keys that they had.
    """

    def __init__(self, *, manifest: Manifest, ledger: LedgerWriter) -> None:
        self.reasons: dict[str, str] = {}
        self._manifest = manifest
        self._parameters = manifest.secagg_parameters
        self._ledger = ledger
        self._signed: dict[str, Countersignature] = {}

    @property
    def finished(self) -> bool:
        """Whether the ledger has the manifest with every signature."""
        return self._ledger.verified.is_in_force(self._manifest)

    @property
    def deadline_s(self) -> float:
        """How long the sites may take."""
        return self._manifest.study.training.deadline_s

    def messages(self) -> dict[str, Content]:
        """Invitation, with the ledger that the manifest continues, to every site that has not signed."""
        length, head = self._place
        invitation = seal_message(
            self._parameters,
            self._ledger.identity,
            Invitation(ledger_length=length, ledger_head=head),
            attempt=BEFORE,
            sender=SERVER,
            payload=pack([*self._ledger.lines()][:length]),
        ).to_bytes()
        return {site: invitation for site in self._parameters.names if site not in self._entered}

    def receive(self, site: str, answer: Content) -> None:
        """A site's signature; ``reasons`` says why there is none, by site."""
        try:
            envelope = Envelope.parse(answer)
            verify_sender(self._parameters, envelope, attempt=BEFORE, senders=(site,))
            if envelope.exchange == Refusal.exchange:
                self.reasons[site] = f"it refused: {Refusal.of(envelope).code}"
                return
            length, head = self._place
            agreed = Agreed.of(envelope)
            signature = Countersignature(
                site=site,
                manifest=self._manifest.sha256,
                ledger_length=length,
                ledger_head=head,
                key=self._manifest.site_keys[site],
                reservation=agreed.reservation,
                signature=agreed.signature,
            )
            signature.verify()
        except EnvelopeError as error:
            self.reasons[site] = error.what
        else:
            self._signed[site] = signature

    def advance(self) -> None:
        """All answers are in, or the deadline passed. Raises ProtocolError where sites have not signed."""
        missing = [name for name in self._parameters.names if name not in self._signed.keys() | self._entered]
        if missing:
            said = [
                f"{site} ({self.reasons.get(site, 'no answer: it is not connected, or too slow')})" for site in missing
            ]
            raise ProtocolError(
                f"the study is not signed by {', '.join(said)}",
                why="no attempt begins before every site has agreed to the manifest",
                fix="have them join and run `grandrounds client start`; `grandrounds client health` there says what is "
                "wrong, and `grandrounds server status` who is connected; then run the same command again",
            )
        if self._manifest not in self._ledger.verified.manifests:
            self._ledger.append(entries.StudyEntry(manifest=self._manifest))
        for name in self._parameters.names:
            if name not in self._entered:
                self._ledger.append(entries.CountersignatureEntry(countersignature=self._signed[name]))

    @property
    def _entered(self) -> frozenset[str]:
        """Whose signatures the ledger has."""
        return frozenset(self._ledger.verified.countersigned) if self._is_in_ledger else frozenset()

    @property
    def _place(self) -> tuple[int, str]:
        """Length and head of the ledger that the manifest continues."""
        verified = self._ledger.verified
        return verified.place if self._is_in_ledger else (len(verified.ledger), verified.ledger.head)

    @property
    def _is_in_ledger(self) -> bool:
        verified = self._ledger.verified
        return bool(verified.manifests) and verified.manifest == self._manifest
