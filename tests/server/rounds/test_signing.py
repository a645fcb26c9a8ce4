"""Signing: an attempt begins only once every site has signed the manifest, and nobody signs in another's name."""

import numpy as np
import pytest
from support.study.federation import Federation, small_study

from grandrounds.common.errors import LedgerError, ProtocolError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.messages import Agreed, Refusal, RefusalCode
from grandrounds.common.secagg.transcript import seal_message
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.rounds.signing import BEFORE, Signing

SITE = "site-2"


@pytest.fixture
def federation():
    return Federation(
        study=small_study(), dimension=7, release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4")
    )


def signing_of(federation, ledger):
    return Signing(manifest=federation.manifest, ledger=ledger)


def new_ledger(federation, verified=None, lines=None):
    return LedgerWriter(
        identity=federation.server,
        store=(lines if lines is not None else []).append,
        verified=verified or VerifiedLedger(),
    )


def ask(signing, federation, answers=None):
    """One exchange, in which ``answers`` take the place of what workers say."""
    for site, message in signing.messages().items():
        signing.receive(site, (answers or {}).get(site, federation.workers[site].handle(message)))


def site_says(federation, message, *, site=SITE, key=SITE, attempt=BEFORE):
    parameters = federation.manifest.secagg_parameters
    return seal_message(parameters, federation.identities[key], message, attempt=attempt, sender=site).to_bytes()


def test_a_study_begins_with_the_signatures_of_all_its_sites(federation):
    lines: list[bytes] = []
    signing = signing_of(federation, new_ledger(federation, lines=lines))
    assert not signing.finished
    ask(signing, federation)
    assert not lines, "nothing is entered before all have signed"
    signing.advance()
    assert signing.finished
    assert lines == federation.lines, "the ledger that every test begins with"
    assert signing.messages() == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda f: b"", "its worker did not answer"),
        (lambda f: site_says(f, Refusal(code=RefusalCode.BUDGET)), "it refused: budget"),
        (lambda f: site_says(f, Agreed(reservation=1, signature="00" * 64)), "does not verify"),
        (lambda f: site_says(f, Agreed(reservation=1, signature="00" * 64), key="site-1"), "does not verify"),
        (lambda f: f.workers["site-1"].handle(signing_of(f, new_ledger(f)).messages()["site-1"]), "site-1"),
        (lambda f: site_says(f, Agreed(reservation=1, signature="00" * 64), attempt=1), "attempt 1"),
    ],
)
def test_a_site_that_does_not_sign_holds_the_study_up_and_is_named(federation, answer, reason):
    lines: list[bytes] = []
    signing = signing_of(federation, new_ledger(federation, lines=lines))
    ask(signing, federation, {SITE: answer(federation)})
    with pytest.raises(ProtocolError, match=f"not signed by {SITE} .*{reason}"):
        signing.advance()
    assert not lines
    ask(signing, federation)
    signing.advance()
    assert signing.finished, "and the same exchange once more is enough"


def test_signatures_cut_off_by_a_crash_are_asked_for_again(federation):
    lines = list(federation.lines[:3])
    signing = signing_of(federation, new_ledger(federation, VerifiedLedger.of(lines), lines))
    assert set(signing.messages()) == {"site-3", "site-4", "site-5"}
    ask(signing, federation)
    signing.advance()
    assert lines == federation.lines


def test_a_ledger_of_another_study_is_not_signed_over(federation):
    other = Federation(
        study=small_study(training={"rounds": 2}),
        dimension=7,
        release=federation.release,
        identities=federation.identities,
        server=federation.server,
    )
    signing = signing_of(federation, new_ledger(federation, VerifiedLedger.of(other.lines)))
    ask(signing, federation)
    with pytest.raises(ProtocolError, match=r"site-1 \(it refused: ledger\)"):
        signing.advance()
    with pytest.raises(LedgerError, match="manifest cannot follow the one before it"):
        signing._ledger.append(entries.StudyEntry(manifest=federation.manifest))


def test_a_site_signs_no_other_manifest_than_its_own(federation):
    other = Federation(
        study=small_study(training={"rounds": 2}),
        dimension=7,
        release=federation.release,
        identities=federation.identities,
        server=federation.server,
    )
    signing = signing_of(federation, new_ledger(federation))
    ask(signing, other)
    assert set(signing.reasons) == set(federation.workers)
    assert not signing.finished
