"""The end of a study: every site that finds it in order signs it, also later; nobody signs what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.study.verified_study import SmallStudy, ran

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import StorageError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import EntryType
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Close, Closed, unpack
from grandrounds.common.secagg.transcript import open_message
from grandrounds.common.study.artefacts import REPORT, RESULTS
from grandrounds.common.system.content import Content
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status
from grandrounds.server.report.report import render_json
from grandrounds.server.rounds.closing import Closing

SITES = tuple(f"site-{number}" for number in range(1, 6))
THRESHOLD = 4


@pytest.fixture
def study() -> SmallStudy:
    """Five sites, of which one dropped out in the second attempt; two rounds are over, and nothing is closed."""
    return ran()


def closing(study: SmallStudy, report: bytes | None = None, **options: Any) -> Closing:
    """The end with this report, or with the study's own."""
    report = render_json(study.report()) if report is None else report
    return Closing(
        **{"ledger": study.ledger, "files": {REPORT: report}, "last_step": study.checkpoints[-1].last_step, **options}
    )


def drive(study: SmallStudy, machine: Closing, *, away: tuple[str, ...] = ()) -> Closing:
    """Every site that is not away answers."""
    while not machine.finished:
        for site, message in machine.messages().items():
            if site not in away:
                machine.receive(site, study.workers[site].handle(message))
        machine.advance()
    return machine


def signed(study: SmallStudy) -> set[str]:
    return set(VerifiedLedger.of(study.lines).closing_signatures)


def sent_lines(study: SmallStudy, message: Content) -> list[bytes]:
    """The ledger's entries that go with a Close."""
    envelope, _ = open_message(
        study.manifest.secagg_parameters,
        message,
        Close,
        attempt=len(study.ledger.verified.attempts),
        senders=("server",),
    )
    return unpack(unpack(envelope.payload)[0])


# --- who signs --------------------------------------------------------------------------------------------------------


def test_every_site_signs_the_whole_ledger_and_its_signature_is_on_it(study: SmallStudy) -> None:
    before = len(study.lines)
    machine = drive(study, closing(study))
    assert machine.reasons == {}
    assert signed(study) == set(SITES)
    end, *signatures = list(study.ledger.verified.ledger)[before:]
    assert end.type is EntryType.STUDY_CLOSED
    assert entries.StudyClosed.of(end).charges == {site: 2 - (site == "site-2") for site in SITES}
    for entry in signatures:
        statement = entries.ClosingSignature.of(entry).closed.statement
        body = Closed.of(Envelope.of_statement(statement))
        assert (body.ledger_length, body.ledger_head) == (before + 1, end.hash)


def test_a_site_that_was_absent_signs_when_it_is_asked_again_and_nobody_else_is_asked(study: SmallStudy) -> None:
    drive(study, closing(study), away=("site-3", "site-5"))
    assert signed(study) == {"site-1", "site-2", "site-4"}
    again = closing(study)
    assert set(again.messages()) == {"site-3", "site-5"}
    drive(study, again)
    assert signed(study) == set(SITES)
    kinds = [entry.type for entry in study.ledger.verified.ledger]
    assert kinds.count(EntryType.STUDY_CLOSED) == 1
    assert kinds.count(EntryType.CLOSING_SIGNATURE) == len(SITES)


def test_a_site_is_sent_the_same_bytes_by_whichever_server_asks_it_again(study: SmallStudy) -> None:
    first = closing(study).messages()
    drive(study, closing(study), away=("site-2", "site-5"))
    again = closing(study).messages()
    assert again == {site: first[site] for site in ("site-2", "site-5")}, "so that it need not be sent them again"


def test_where_all_have_signed_nothing_is_left_to_say(study: SmallStudy) -> None:
    drive(study, closing(study))
    before = list(study.lines)
    again = closing(study)
    assert again.finished
    assert again.messages() == {}
    assert study.lines == before


@pytest.mark.parametrize("present", [THRESHOLD - 1, THRESHOLD])
def test_fewer_signatures_than_the_threshold_leave_the_study_open(
    study: SmallStudy, tmp_path: Path, present: int
) -> None:
    study.write_results(tmp_path)
    files = {path: (tmp_path / path).read_bytes() for path in RESULTS}
    drive(study, closing(study, files=files), away=SITES[present:])
    study.write_ledger(tmp_path)
    found = next(
        finding for finding in verify(tmp_path).findings if finding.claim.startswith("Enough sites signed the end")
    )
    if present < THRESHOLD:
        assert found.status is Status.OPEN
        assert f"{present} sites signed" in found.detail
        assert "open since attempt 2" in found.detail
    else:
        assert found.status is Status.AGREES


def test_a_site_signs_again_after_its_signature_was_lost_on_the_way(study: SmallStudy) -> None:
    machine = closing(study)
    for site, message in machine.messages().items():
        study.workers[site].handle(message)
    machine.advance()
    assert signed(study) == set()
    drive(study, closing(study))
    assert signed(study) == set(SITES)


def held_by(study: SmallStudy, site: str) -> list[bytes]:
    return list(study.workers[site]._state.ledger(study.manifest.study_id))


def test_every_site_that_has_signed_holds_the_signatures_of_all(study: SmallStudy) -> None:
    drive(study, closing(study), away=("site-3",))
    for site in set(SITES) - {"site-3"}:
        assert held_by(study, site) == study.lines
    assert VerifiedLedger.of(held_by(study, "site-3")).closed is None
    drive(study, closing(study))
    assert {site: held_by(study, site) for site in SITES} == dict.fromkeys(SITES, study.lines)


def test_a_site_without_the_files_signs_nothing_whatever_it_is_told_of_the_others(study: SmallStudy) -> None:
    drive(study, closing(study), away=("site-3",))
    without = closing(study)
    without._contents = []
    drive(study, without)
    assert signed(study) == set(SITES) - {"site-3"}


def test_signatures_that_do_not_hold_are_not_kept_by_a_site(study: SmallStudy) -> None:
    machine = closing(study)
    for site, message in machine.messages().items():
        machine.receive(site, study.workers[site].handle(message))
    before = held_by(study, "site-2")
    machine.advance()
    told = machine.messages()["site-2"]
    line = sent_lines(study, told)[-1]
    forged = line.replace(b'"signature":"', b'"signature":"00', 1)
    assert forged != line
    machine._ledger.lines = lambda start: [*study.lines[start:-1], forged]  # type: ignore[method-assign, assignment, misc]
    study.workers["site-2"].handle(machine.messages()["site-2"])
    assert held_by(study, "site-2") == before
    study.workers["site-2"].handle(told)
    assert held_by(study, "site-2") == study.lines


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_site_is_sent_what_it_lacked_when_it_advertised_last(study: SmallStudy) -> None:
    ledger = study.ledger.verified.ledger
    begun = max(place for place, entry in enumerate(ledger) if entry.type is EntryType.ATTEMPT_BEGUN)
    machine = closing(study)
    assert {site: sent_lines(study, message) for site, message in machine.messages().items()} == dict.fromkeys(
        SITES, study.lines[begun + 1 :]
    ), "all of them advertised in the last attempt, the one that dropped out later among them"


def test_what_the_ledger_tells_that_sites_have_is_enough_for_them_to_sign(study: SmallStudy) -> None:
    machine = closing(study)
    assert all(len(sent_lines(study, message)) < len(study.lines) for message in machine.messages().values())
    drive(study, machine)
    assert signed(study) == set(SITES)


# --- what nobody signs ------------------------------------------------------------------------------------------------


def test_nobody_signs_for_another_report_than_the_ledger_names(study: SmallStudy) -> None:
    report = render_json(study.report())
    named = {REPORT: sha256(report + b" ")}
    study.ledger.append(entries.StudyClosed(charges=study.ledger.verified.charges, files=named))
    machine = drive(study, closing(study, report))
    assert signed(study) == set()
    assert set(machine.reasons) == set(SITES)


def with_less_epsilon(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "epsilon": report["epsilon"] * 0.99}


def with_no_epsilon(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "epsilon": None}


def of_another_study(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "manifest_sha256": "00" * 32}


@pytest.mark.parametrize("lie", [with_less_epsilon, with_no_epsilon, of_another_study])
def test_nobody_signs_for_a_report_that_claims_what_the_site_does_not_find(study: SmallStudy, lie: Any) -> None:
    drive(study, closing(study, json.dumps(lie(dict(study.report()))).encode()))
    assert signed(study) == set()


def test_a_report_that_claims_no_less_than_a_site_computes_is_signed(study: SmallStudy) -> None:
    """The counterpart: it is the claim that is refused above, and not that the bytes were written anew."""
    drive(study, closing(study, json.dumps(dict(study.report())).encode()))
    assert signed(study) == set(SITES)


def test_a_site_does_not_sign_where_a_charge_of_its_own_is_missing(study: SmallStudy) -> None:
    """It paid once more than the ledger can account for, as where the server left an attempt out."""
    database = study.workers["site-4"]._state.database
    database.change("INSERT INTO attempts VALUES (?, ?, 1)", study.manifest.study_id, 3)
    machine = drive(study, closing(study))
    assert signed(study) == set(SITES) - {"site-4"}
    assert set(machine.reasons) == {"site-4"}


def test_a_site_does_not_sign_where_its_own_record_lacks_a_charge(study: SmallStudy) -> None:
    """An older copy of its state was put back."""
    database = study.workers["site-4"]._state.database
    database.change("DELETE FROM attempts WHERE study = ? AND attempt = 2", study.manifest.study_id)
    drive(study, closing(study))
    assert signed(study) == set(SITES) - {"site-4"}


# --- what the server does not take ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"\x00" * 200])
def test_an_answer_that_is_none_is_told_and_the_others_sign(study: SmallStudy, answer: bytes) -> None:
    machine = closing(study)
    for site, message in machine.messages().items():
        machine.receive(site, answer if site == "site-1" else study.workers[site].handle(message))
    machine.advance()
    assert set(machine.messages()) == set(SITES) - {"site-1"}
    assert set(drive(study, machine).reasons) == {"site-1"}
    assert signed(study) == set(SITES) - {"site-1"}


def test_a_signature_counts_for_its_author_and_once(study: SmallStudy) -> None:
    machine = closing(study)
    answer = study.workers["site-1"].handle(machine.messages()["site-1"])
    for site in ("site-1", "site-2"):
        machine.receive(site, answer)
    assert signed(study) == {"site-1"}
    assert machine.reasons.keys() == {"site-2"}


def test_a_signature_on_another_end_is_not_taken(study: SmallStudy) -> None:
    """It is a site's own, and of this study, but on another ledger than this one."""
    other = Closed(ledger_length=3, ledger_head="00" * 32)
    machine = closing(study)
    machine.receive("site-1", study.workers["site-1"]._seal(other, attempt=len(study.ledger.verified.attempts)))
    assert signed(study) == set()
    assert "another ledger" in machine.reasons["site-1"]


def test_a_disk_that_is_full_at_the_end_leaves_the_ledger_as_it_was(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(line: bytes) -> None:
        raise StorageError("full", why="", fix="")

    before = list(study.lines)
    monkeypatch.setattr(study.ledger, "store", full)
    with pytest.raises(StorageError):
        closing(study)
    assert study.ledger.verified.closed is None
    monkeypatch.undo()
    drive(study, closing(study))
    assert study.lines[: len(before)] == before
    assert signed(study) == set(SITES)
