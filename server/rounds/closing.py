"""The end of a study: its last entry, and every site's signature on the whole ledger, for all sites to have."""

from collections.abc import Mapping

from ...common.crypto.identity import sha256
from ...common.errors import EnvelopeError, LedgerError
from ...common.ledger import entries
from ...common.ledger.chain import EntryType
from ...common.ledger.entries import SignedStatement
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import SERVER, Close, pack, packed
from ...common.secagg.transcript import seal_message
from ...common.study.step import LastStep, Missing
from ...common.system.content import Content
from .ledger_writer import LedgerWriter


class Closing:
    """Each site gets the rest of the ledger and what the study leaves, and signs it or stays silent.

    Whoever has signed then gets the signatures of all, so that what a site holds can be verified without its server.

    A site that was absent can sign later: a new instance, on the same ledger, asks those who have not.
    """

    def __init__(
        self,
        *,
        ledger: LedgerWriter,
        files: Mapping[str, Content],
        last_step: LastStep,
    ) -> None:
        """``files`` are the contents of every file that the study leaves, report.json among them, by its path.

        ``last_step`` led to the adapter among them. Closes the study unless it is closed. Raises StorageError.
        """
        self.reasons: dict[str, str] = {}
        self._ledger = ledger
        self._last_step = last_step
        self._contents: list[Content] = [files[name] for name in sorted(files)]
        if ledger.verified.closed is None:
            hashes = {name: sha256(content) for name, content in files.items()}
            ledger.append(entries.StudyClosed(charges=ledger.verified.charges, files=hashes))
        self._asked = not self._unsigned  # whether every site was, in this exchange or long before
        self._untold = False  # whether there are signatures that no site was told

    @property
    def finished(self) -> bool:
        """Whether every site was asked that had not signed, and what came of it was told."""
        return self._asked and not self._untold

    @property
    def deadline_s(self) -> float:
        """How long the sites may take."""
        return self._ledger.verified.manifest.study.training.deadline_s

    def messages(self) -> dict[str, Content]:
        """Close, to every site that has not signed; or, once all were asked, without files to those that have.

        What a site is sent that has not signed is the same bytes whenever it is asked, in whichever process: what it
        has of them by then it need not be sent again.
        """
        verified = self._ledger.verified
        if self.finished:
            return {}
        closing = verified.closing
        assert closing is not None  # noqa: S101 (the constructor closed the study)
        if self._asked:
            starts = dict.fromkeys(sorted(verified.closing_signatures), closing.ledger_length)
            contents: list[Content] = []
            end = None
        else:
            known = self._known
            starts = {site: known.get(site, 0) for site in self._unsigned}
            contents, end = self._contents, closing.ledger_length
        sealed = {
            start: seal_message(
                verified.manifest.secagg_parameters,
                self._ledger.identity,
                Close(**closing.model_dump()),
                attempt=len(verified.attempts),
                sender=SERVER,
                payload=packed([pack(self._ledger.lines(0)[start:end]), self._missing(start).packed(), *contents]),
            ).wire
            for start in set(starts.values())
        }
        return {site: sealed[start] for site, start in starts.items()}

    def receive(self, site: str, answer: Content) -> None:
        """A site's signature, which the ledger takes if it fits; ``reasons`` says why not, by site."""
        if self._asked:
            return  # the site repeats what it has signed
        try:
            statement = SignedStatement.of(Envelope.parse(answer).statement)
            self._ledger.append(entries.ClosingSignature(closed=statement))
            self._untold = True
        except (EnvelopeError, LedgerError) as error:
            self.reasons[site] = error.what

    def advance(self) -> None:
        """All answers are in, or the deadline passed."""
        self._untold = self._untold and not self._asked
        self._asked = True

    def _missing(self, start: int) -> Missing:
        """What a site lacks of the adapter that is to sign, and holds so many entries."""
        return Missing() if self._asked else self._last_step.missing(behind=self._ledger.rounds_since(start))

    @property
    def _known(self) -> dict[str, int]:
        """How many entries a site had on its disk as it advertised in the last attempt that ended."""
        entries_ = list(self._ledger.verified.ledger)
        places = (place for place, entry in enumerate(entries_) if entry.type is EntryType.ATTEMPT_ENDED)
        ended = max(places, default=None)
        if ended is None:
            return {}
        begun = max(place for place, entry in enumerate(entries_[:ended]) if entry.type is EntryType.ATTEMPT_BEGUN)
        adverts = entries.AttemptEnded.of(entries_[ended]).adverts
        return {Envelope.of_statement(advert.statement).sender: begun + 1 for advert in adverts}

    @property
    def _unsigned(self) -> list[str]:
        verified = self._ledger.verified
        return [site for site in verified.manifest.secagg_parameters.names if site not in verified.closing_signatures]
