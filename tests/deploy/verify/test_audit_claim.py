"""An audit in a study's folder: in the report where it was there in time, and checked by its scores alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.study.audited_study import audit_of
from support.study.verification import reclosed, rewritten
from support.study.verified_study import SmallStudy, ran

from grandrounds.common.audit.named import name_of
from grandrounds.common.errors import LedgerError
from grandrounds.common.study.artefacts import AUDIT, CARD, PAGE, REPORT
from grandrounds.deploy.verify.case import Case
from grandrounds.deploy.verify.claims import verdict_on, verify
from grandrounds.deploy.verify.evidence import read_evidence
from grandrounds.deploy.verify.verdict import Outcome, Status
from grandrounds.server.report.audit import Audited, attached
from grandrounds.server.report.report import Declared


def judged(folder: Path) -> tuple[bool, str]:
    """Whether the audit's claim holds, and what is said of it."""
    (finding,) = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=None), "audit").findings
    return finding.status is Status.AGREES, finding.detail


def refused(folder: Path) -> str:
    holds, said = judged(folder)
    assert not holds and "could not be checked" not in said
    return said


def reported(study: SmallStudy, folder: Path, audit: bytes) -> tuple[dict[str, Any], Audited]:
    """The report of a study that is closed again with the audit in its folder, and what the audit found."""
    (folder / AUDIT).write_bytes(audit)
    audited = attached(folder, study.manifest)
    assert audited is not None
    report = study.report(audit=audited)
    assert Declared.of(json.loads(json.dumps(report))).audit == audited
    rewritten(folder, report)
    reclosed(study, folder)
    return report, audited


def test_an_audit_that_came_after_the_end_is_checked_beside_the_report(study: SmallStudy, folder: Path) -> None:
    (finding,) = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=None), "audit").findings
    assert finding.status is Status.ABSENT and "none is attached" in finding.detail
    (folder / AUDIT).write_bytes(audit_of(study.manifest))
    holds, said = judged(folder)
    assert holds and "60 planted gradient canaries" in said and "within the claim" in said
    assert "by the word of whoever audited it" in said and "with a confidence of 95 %" in said


def test_an_audit_that_came_in_time_is_in_the_report_the_page_and_the_card(study: SmallStudy, folder: Path) -> None:
    report, audited = reported(study, folder, audit_of(study.manifest))
    findings = {finding.name: finding for finding in verify(folder).findings}
    assert findings["audit"].detail == report["audit"]["says"] == audited.in_words
    for name in ("audit", "report", "page", "card", "files"):
        assert findings[name].status is Status.AGREES
    for path, says in (
        (PAGE, "planted gradient canaries"),
        (CARD, "planted gradient canaries"),
        (PAGE, audited.sha256),
        (PAGE, "bounded by the method line-up; seed of "),
        (PAGE, f": <code>{audited.seed}</code></td>"),
        (PAGE, "each site adds half of its noise"),
        (CARD, "| half the noise | each site adds half of its noise | "),
    ):
        assert says in (folder / path).read_text(encoding="utf-8")
    (folder / AUDIT).write_bytes(audit_of(study.manifest, seed=2))
    assert "not the audit that the report states" in refused(folder)


def test_what_synthetic_notes_show_stands_beside_the_rest_with_what_they_show_without_noise(
    study: SmallStudy, folder: Path
) -> None:
    _, audited = reported(study, folder, audit_of(study.manifest, synthetic_notes=500))
    says = "60 planted text canaries (by 500 synthetic notes alone) show that ε is at least 0"
    assert says in audited.in_words and "a bound of 0 says that it found nothing, not" in audited.in_words
    for path in (PAGE, CARD):
        text = (folder / path).read_text(encoding="utf-8")
        assert says in text and "noise off (synthetic notes)" in text
    findings = {finding.name: finding for finding in verify(folder).findings}
    for name in ("audit", "report", "page", "card", "files"):
        assert findings[name].status is Status.AGREES
    changed = json.loads((folder / AUDIT).read_bytes())
    changed["synthetic_notes"] = 5000
    (folder / AUDIT).write_bytes(json.dumps(changed).encode())
    assert "not the audit that the report states" in refused(folder)


def test_of_an_audit_without_synthetic_notes_a_report_has_no_word_of_them(study: SmallStudy) -> None:
    assert "synthetic" not in json.dumps(study.report(audit=Audited.of(audit_of(study.manifest)))["audit"])


def test_an_audit_that_the_manifest_names_is_that_file_and_in_the_report(study: SmallStudy, tmp_path: Path) -> None:
    audit = audit_of(study.manifest)
    named = ran(about={"audit": name_of(audit)})
    named.close(tmp_path)
    (finding,) = verdict_on(Case(evidence=read_evidence(tmp_path), manifest_hash=None), "audit").findings
    assert finding.status is Status.OPEN and "the manifest names an audit" in finding.detail
    (tmp_path / AUDIT).write_bytes(audit)
    assert "the report does not state the audit that the manifest names" in refused(tmp_path)
    rewritten(tmp_path, named.report(audit=attached(tmp_path, named.manifest)))
    assert judged(tmp_path)[0]
    assert "which all sites had before they signed" in (tmp_path / PAGE).read_text(encoding="utf-8")
    (tmp_path / AUDIT).write_bytes(audit_of(study.manifest, seed=2))
    assert "not the audit that" in refused(tmp_path)


def test_a_report_states_no_other_audit_than_the_one_that_the_manifest_names(study: SmallStudy, tmp_path: Path) -> None:
    other = Audited.of(audit_of(study.manifest, seed=2))
    named = ran(about={"audit": name_of(audit_of(study.manifest))})
    named.close(tmp_path)
    (tmp_path / AUDIT).write_bytes(audit_of(study.manifest, seed=2))
    assert attached(tmp_path, named.manifest) is None
    (tmp_path / AUDIT).unlink()
    with pytest.raises(LedgerError, match="another audit than the one that the manifest names"):
        named.report(audit=other)
    report = named.report()
    report["audit"]["found"] = other.model_dump(mode="json")
    rewritten(tmp_path, report)
    (finding,) = verdict_on(Case(evidence=read_evidence(tmp_path), manifest_hash=None), "report").findings
    assert finding.status is Status.DISAGREES and "another audit" in finding.detail


def test_an_audit_that_the_report_states_and_a_site_does_not_hold_is_open_and_refutes_nothing(
    study: SmallStudy, folder: Path
) -> None:
    (folder / AUDIT).write_bytes(audit_of(study.manifest))
    rewritten(folder, study.report(audit=attached(folder, study.manifest)))
    (folder / AUDIT).unlink()
    (finding,) = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=None), "audit").findings
    assert (finding.status, finding.outcome) == (Status.OPEN, Outcome.UNKNOWN)
    assert "its server holds" in finding.detail


def test_a_report_without_an_audit_says_how_one_is_made(folder: Path) -> None:
    report = json.loads((folder / REPORT).read_bytes())
    assert report["audit"]["found"] is None and "grandrounds audit DIR --attach DIR" in report["audit"]["says"]
    assert "planted" not in (folder / CARD).read_text(encoding="utf-8")


def test_an_audit_that_refutes_the_claim_is_told_and_makes_it_false(study: SmallStudy, folder: Path) -> None:
    (folder / AUDIT).write_bytes(audit_of(study.manifest, seen=20.0))
    assert "This refutes the claim." in refused(folder)
    assert "This refutes the claim." in Audited.of((folder / AUDIT).read_bytes()).in_words


def test_of_each_kind_of_canaries_it_is_said_whether_noise_that_is_off_would_pass_as_well(study: SmallStudy) -> None:
    def said(**how: Any) -> str:
        return Audited.of(audit_of(study.manifest, **how)).in_words

    blind = "claim; 60 planted gradient canaries say little of it: noise that is off is not seen either."
    assert blind in said(lacking="noise off", lacks=1.0)
    seen = said(lacking="noise off", lacks=50.0)
    assert "That is within the claim. Area under the ROC curve, 0.5 for guessing: 0." in seen
    by_notes = "60 planted text canaries (by 500 synthetic notes alone) say little of it: noise that is off"
    found = said(lacking="noise off", lacks=50.0, synthetic_notes=500)
    assert f"That is within the claim; {by_notes} is not seen either." in found and "gradient canaries say" not in found
    assert "60 planted gradient canaries say little of it: noise that is off was not tried." in said()


def test_a_bound_that_does_not_follow_and_a_twin_of_another_study_are_refused(study: SmallStudy, folder: Path) -> None:
    fields = json.loads(audit_of(study.manifest))
    fields["bounds"][0]["epsilon"] += 0.5
    (folder / AUDIT).write_text(json.dumps(fields), encoding="utf-8")
    assert "follows from the scores" in refused(folder)
    (folder / AUDIT).write_bytes(audit_of(ran(noise_multiplier=1.6).manifest))
    assert "noise_multiplier is 1.6 there and 1.5 here" in refused(folder)
    assert attached(folder, study.manifest) is None


def test_a_twin_that_ran_another_program_is_refused(study: SmallStudy, folder: Path) -> None:
    fields = json.loads(audit_of(study.manifest))
    fields["package_sha256"] = "ab" * 32
    (folder / AUDIT).write_text(json.dumps(fields), encoding="utf-8")
    assert "the audited twin ran files of SHA-256 abab" in refused(folder)
    assert attached(folder, study.manifest) is None


@pytest.mark.parametrize("content", [b"Jane Doe", b"{}"])
def test_what_is_no_audit_is_no_part_of_a_report_and_is_refused(
    study: SmallStudy, folder: Path, content: bytes
) -> None:
    (folder / AUDIT).write_bytes(content)
    assert attached(folder, study.manifest) is None
    said = refused(folder)
    assert "no evidence of an audit" in said and "Jane" not in said
