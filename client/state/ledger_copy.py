"""A site's copy of the ledger: what it holds, what it lets be added, and what it signs at the end."""

import json

from ...common.crypto.identity import sha256
from ...common.errors import LedgerError
from ...common.ledger.chain import EntryType, broken
from ...common.ledger.replay import VerifiedLedger, begin_of
from ...common.privacy.accountant import epsilon
from ...common.protocol.messages import Begin, Close, Closed, Invitation
from ...common.study.artefacts import REPORT
from ...common.study.manifest import Manifest
from ...common.system.content import Content
from .site_state import AdapterRow, SiteState


class SetBackError(LedgerError):
    """The site's own record lacks what the ledger holds of it."""


class SiteLedger:
    """The ledger of one study as one site holds it, in its ``SiteState``.

    It only grows, and only by entries that an honest study can have (``VerifiedLedger``). A server that shows a site
    another history than before, or leaves something out, is refused here.
    """

    def __init__(self, state: SiteState, manifest: Manifest, *, name: str) -> None:
        """Raises StorageError, and LedgerError where what is held is not whole."""
        self._state = state
        self._manifest = manifest
        self._name = name
        self.verified = VerifiedLedger.of(state.ledger(manifest.study_id))

    def agree(self, lines: list[bytes], invitation: Invitation) -> None:
        """Take the ledger that the manifest is to continue: what the site then signs. On disk before it returns.

        Raises LedgerError unless it continues what the site holds, has all that the site paid, ends where the
        ``invitation`` says, and may be continued by the manifest; SetBackError if the site's own record is older than
        it; StudyError and StorageError.
        """
        verified = self.verified.continued(lines)
        if (len(verified.ledger), verified.ledger.head) != (invitation.ledger_length, invitation.ledger_head):
            raise broken("it does not end where the manifest is to be signed")
        verified.check_next(self._manifest)
        self._check_charges(self._charges_of(verified))
        if new := self._new_lines(verified):
            self._state.append(self._manifest.study_id, new)
        self.verified = verified

    def begun(self, lines: list[bytes], begin: Begin, *, attempt: int) -> VerifiedLedger:
        """The ledger with ``lines``, which end with the attempt that ``begin`` opens; nothing is stored yet.

        Raises LedgerError, and SetBackError if the site's own record is older than the ledger.
        """
        verified = self._continued(lines)
        last = verified.ledger.last
        if last is None or last.type != EntryType.ATTEMPT_BEGUN or begin_of(last) != begin:
            raise broken("it does not end with the attempt that is to begin")
        if len(verified.attempts) != attempt:
            raise broken(f"it counts {len(verified.attempts)} attempts, the server {attempt}")
        self._check_charges(verified.possible_charges(self._name))
        for key, number in _reservations(verified).items():
            other = self._state.study_of_peer(key, number)
            if other not in (None, self._manifest.study_id):
                raise broken(
                    f"the site of key {key[:16]}… stated its reservation {number} in study {other[:12]}, too, so that "
                    "its state was set back in between, and has forgotten what was spent"
                )
        return verified

    def begin(self, verified: VerifiedLedger, *, adapter: AdapterRow | None = None) -> int:
        """Take the attempt's serial and the ledger up to it, on disk before it returns; the charges paid before it.

        With them the ``adapter`` to hold from now on, if it is another. Raises StorageError, and PrivacyError where
        the study was not joined.
        """
        study, serial = self._manifest.study_id, len(verified.attempts)
        lines, stated = self._new_lines(verified), _reservations(verified)
        self._state.begin(study, serial, lines, adapter=adapter, reservations=stated)
        self.verified = verified
        return self._state.charges(self._manifest.study_id)

    def closed(
        self, lines: list[bytes], close: Close, contents: list[Content]
    ) -> tuple[VerifiedLedger, dict[str, Content]]:
        """The ledger with ``lines``, which end with the study's closing, and the files that it names; nothing is kept.

        Raises LedgerError unless the ledger is whole and has all that this site paid, and the ``contents`` are those of
        exactly its files, in the order of their names, with a report that claims no less than the site computes. A site
        that has signed may be sent none again, with what the ledger got since.
        """
        verified = self._continued(lines)
        closing = verified.closing
        if verified.closed is None or closing != Closed(**close.model_dump()):
            raise broken("it does not end with the study's closing")
        self._check_charges(self._charges_of(verified))
        if self.verified.closing is not None and not contents:
            return verified, {}
        files = dict(zip(sorted(verified.closed.files), contents, strict=False))
        if len(contents) != len(verified.closed.files) or REPORT not in files:
            raise broken("its files are not all there, or others with them")
        if {name: sha256(content) for name, content in files.items()} != verified.closed.files:
            raise broken("a file is another than the one it names")
        self._check_claim(bytes(files[REPORT][:]))
        return verified, files

    def close(self, verified: VerifiedLedger) -> Closed:
        """What the site signs: the ledger up to the entry that closed the study, on disk then. Raises StorageError."""
        assert verified.closing is not None  # noqa: S101 (``closed`` saw to it)
        self._state.append(self._manifest.study_id, self._new_lines(verified))
        self.verified = verified
        return verified.closing

    def _continued(self, lines: list[bytes]) -> VerifiedLedger:
        verified = self.verified.continued(lines)
        if verified.manifest != self._manifest:
            raise broken("its manifest is another than the one that this site signed")
        return verified

    def _charges_of(self, verified: VerifiedLedger) -> range:
        """What this site can have paid, by a ledger whose last attempt is over or was cut off."""
        return range(verified.charges.get(self._name, 0), verified.most_charges(self._name) + 1)

    def _check_charges(self, possible: range) -> None:
        paid = self._state.charges(self._manifest.study_id)
        if paid < possible.start:
            raise SetBackError(
                f"the ledger has {possible.start} charges of {self._name}, its own record {paid}",
                why="an older copy of the site's state was put back, and has forgotten what was spent",
                fix="leave the study, with its whole schedule counted as spent; never put back an older state",
            )
        if paid >= possible.stop:
            raise broken(f"{self._name} paid {paid} times, and it leaves room for {possible.stop - 1}")

    def _check_claim(self, report: bytes) -> None:
        try:
            fields = json.loads(report)
            manifest, claimed = fields["manifest_sha256"], fields["epsilon"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise broken("the report is not one of this version") from error
        if manifest != self._manifest.sha256:
            raise broken("the report is another study's")
        if self._manifest.schedule is not None:
            own = epsilon(self._manifest.schedule, delta=self._manifest.delta).epsilon
            if not isinstance(claimed, float) or claimed < own * (1 - 1e-6):
                raise broken(f"the report claims less than this site computes, ε = {own:.4f}")

    def _new_lines(self, verified: VerifiedLedger) -> list[bytes]:
        return verified.ledger.lines(len(self.verified.ledger))


def _reservations(verified: VerifiedLedger) -> dict[str, int]:
    """What the sites of the last manifest stated as they signed it, by their keys."""
    return {verified.manifest.site_keys[site]: number for site, number in verified.reservations.items()}
