"""Attacks in a study's folder: of a simulation of nobody alone, in the report where they were there in time."""

import json
from pathlib import Path

import pytest
from support.study.attacked_study import PATIENTS, attacks_of, simulated
from support.study.verification import reclosed, rewritten
from support.study.verified_study import SmallStudy

from grandrounds.common.audit.membership import FEWEST
from grandrounds.common.errors import LedgerError
from grandrounds.common.study.artefacts import ATTACKS, CARD, PAGE, REPORT
from grandrounds.deploy.registry.facts import facts_of
from grandrounds.deploy.verify.case import Case
from grandrounds.deploy.verify.claims import verdict_on, verify
from grandrounds.deploy.verify.evidence import read_evidence
from grandrounds.deploy.verify.verdict import Status
from grandrounds.server.report.attacks import Attacked, attached


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallStudy, Path]:
    study, folder = simulated(), tmp_path_factory.mktemp("simulation")
    study.close(folder)
    return study, folder


def judged(folder: Path) -> tuple[Status, str]:
    (finding,) = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=None), "attacks").findings
    assert "could not be checked" not in finding.detail
    return finding.status, finding.detail


def found(study: SmallStudy, folder: Path) -> Attacked | None:
    return attached(folder, study.manifest, adapter_sha256=study.ledger.verified.rounds[-1].left_sha256)


def test_attacks_that_came_after_the_end_are_checked_beside_the_report(study: SmallStudy, folder: Path) -> None:
    assert "adapter attack DIR --attach" in json.loads((folder / REPORT).read_bytes())["attacks"]["says"]
    assert "none are attached" in judged(folder)[1]
    (folder / ATTACKS).write_bytes(attacks_of(study))
    status, said = judged(folder)
    assert status is Status.AGREES and f"on {PATIENTS} patients who were trained on and {PATIENTS} who" in said
    assert said.startswith("By the word of whoever ran them") and "None of these attacks tells who" in said
    (folder / ATTACKS).write_bytes(attacks_of(study, lower=2.0))
    assert "MORE THAN ε ALLOWS" not in said and "MORE THAN ε ALLOWS" in judged(folder)[1]


def test_attacks_that_came_in_time_are_in_the_report_the_page_and_the_card(study: SmallStudy, folder: Path) -> None:
    (folder / ATTACKS).write_bytes(attacks_of(study))
    report = study.report(attacks=found(study, folder))
    rewritten(folder, report)
    reclosed(study, folder)
    findings = {finding.name: finding for finding in verify(folder).findings}
    for name in ("attacks", "report", "page", "card", "files"):
        assert findings[name].status is Status.AGREES, findings[name].detail
    assert findings["attacks"].detail == report["attacks"]["says"]
    assert "By the word of whoever ran them" in (folder / CARD).read_text(encoding="utf-8")
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert "What attacks on the adapter found" in page and "What ε allows any attack" in page
    (folder / ATTACKS).write_bytes(attacks_of(study, seed=2))
    assert judged(folder) == (Status.DISAGREES, "what the report states is not what follows from attacks.json")
    (folder / ATTACKS).unlink()
    assert judged(folder)[0] is Status.OPEN
    # What a report states and no scores bear out is no fact of a release.
    assert (
        report["attacks"]["found"]
        and facts_of(Case(evidence=read_evidence(folder), manifest_hash=None)).attacks is None
    )


def test_what_the_report_says_that_epsilon_allows_follows_from_the_manifest(study: SmallStudy, folder: Path) -> None:
    (folder / ATTACKS).write_bytes(attacks_of(study))
    attacked = found(study, folder)
    assert attacked is not None
    report = study.report(attacks=attacked.under(((0.0, 0.01),)))
    assert report == study.report(attacks=attacked)
    report["attacks"]["found"]["findings"]["curve"] = [[0.0, 0.01]]
    rewritten(folder, report)
    assert any("attacks.found.findings.curve" in each.detail for each in verify(folder).findings)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"sensitivity": "deidentified"}, "records of site-1, site-2, site-3, site-4, site-5 are not said to be"),
        ({"sensitivity": "public", "app_sha256": "44" * 32}, "it ran between institutions"),
    ],
)
def test_figures_of_patients_who_may_be_real_are_in_no_report_and_no_folder(
    made: dict[str, str], why: str, study: SmallStudy, folder: Path, tmp_path: Path
) -> None:
    """Of an honest server, which leaves them out, and of a report that has them all the same."""
    (folder / ATTACKS).write_bytes(attacks_of(study))
    attacked = found(study, folder)
    real, theirs = simulated(**made), tmp_path / "real"
    real.write_ledger(theirs)
    (theirs / ATTACKS).write_bytes(attacks_of(real))
    assert found(real, theirs) is None
    status, said = judged(theirs)
    assert status is Status.DISAGREES and why in said
    with pytest.raises(LedgerError, match="the report has figures of attacks"):
        real.report(attacks=attacked)


def test_attacks_on_another_adapter_and_what_are_none_are_refused(study: SmallStudy, folder: Path) -> None:
    fields = json.loads(attacks_of(study))
    (folder / ATTACKS).write_text(json.dumps({**fields, "adapter_sha256": "ab" * 32}), encoding="utf-8")
    assert judged(folder)[0] is Status.DISAGREES and "the attacks were made on the adapter abab" in judged(folder)[1]
    fields["members"]["base"].pop()
    for content in (json.dumps(fields), "Jane Doe", "{}", "[" * 5000):
        (folder / ATTACKS).write_text(content, encoding="utf-8")
        assert found(study, folder) is None
        status, said = judged(folder)
        assert status is Status.DISAGREES and "no scores of attacks" in said and "Jane" not in said


@pytest.mark.parametrize(
    ("name", "score", "reason"),
    [
        ("tokens", -100.0, "tokens: a patient's is below zero"),
        ("tokens", 0.0, "tokens: a patient has none to be predicted"),
        ("tokens", 99.5, "tokens: a patient's is no whole number of tokens"),
        ("base_run", 0.5, "base_run: a patient's is no whole number of tokens"),
        ("adapter_run", 101.0, "adapter_run: a patient's is longer than all tokens that are predicted"),
        ("adapter_run", -1.0, "adapter_run: a patient's is below zero"),
        ("base", -0.1, "base: a patient's is below zero"),
        ("moved", -0.1, "moved: a patient's is below zero"),
        ("aligned", float("inf"), "aligned"),
    ],
)
def test_scores_that_no_attack_gives_are_refused_with_the_reason(
    name: str, score: float, reason: str, study: SmallStudy, folder: Path
) -> None:
    for who in ("members", "others"):
        fields = json.loads(attacks_of(study))
        fields[who][name][3] = score
        (folder / ATTACKS).write_text(json.dumps(fields), encoding="utf-8")
        assert found(study, folder) is None
        status, said = judged(folder)
        assert status is Status.DISAGREES and who in said and reason in said


def test_scores_of_too_few_patients_or_by_another_program_are_refused_with_the_reason(
    study: SmallStudy, folder: Path
) -> None:
    fields = json.loads(attacks_of(study))
    (folder / ATTACKS).write_text(json.dumps({**fields, "package_sha256": "ab" * 32}), encoding="utf-8")
    assert (
        judged(folder)[0] is Status.DISAGREES and f"the attacks ran files of SHA-256 {'ab' * 32}" in judged(folder)[1]
    )
    for count, status in ((FEWEST, Status.AGREES), (FEWEST - 1, Status.DISAGREES)):
        fields["others"] = {name: scores[:count] for name, scores in fields["others"].items()}
        (folder / ATTACKS).write_text(json.dumps(fields), encoding="utf-8")
        assert judged(folder)[0] is status, count
    assert f"tokens: of {FEWEST - 1} patients, and attacks need {FEWEST} of each kind" in judged(folder)[1]
