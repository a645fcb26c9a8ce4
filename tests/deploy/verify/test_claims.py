"""Verification: a study that ran is confirmed claim by claim; whatever is changed is found, whoever signs it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.study.federation import small_study
from support.study.verification import (
    CARD_SAYS,
    END,
    FILES,
    FOLLOWS,
    FROZEN,
    KNOWN,
    MANIFEST,
    PAGE_SAYS,
    PRIVACY,
    TRAINED,
    USED,
    WHOLE,
    found,
    reclosed,
    refused,
    rewritten,
)
from support.study.verified_study import HARMFUL, SmallStudy, ran, random_flips, undetected, used_up, write_ledger

from grandrounds.common.crypto.identity import Identity, shown_key
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.privacy.composition import recomputed_epsilon
from grandrounds.common.schema import validated
from grandrounds.common.study.artefacts import CARD, LEDGER, PAGE, REPORT
from grandrounds.common.study.artefacts import MANIFEST as STUDY
from grandrounds.common.study.manifest import Countersignature, Manifest
from grandrounds.deploy.verify import claims
from grandrounds.deploy.verify.claims import CLAIMS, verify
from grandrounds.deploy.verify.verdict import Outcome, Status
from grandrounds.server.report.report import render_json


def test_every_claim_of_a_finished_study_is_confirmed_by_who_knows_its_manifest(
    study: SmallStudy, folder: Path
) -> None:
    verdict = verify(folder, manifest_hash=study.manifest.sha256)
    assert verdict.holds and len(verdict.findings) == len(CLAIMS)
    assert [finding.name for finding in verdict.findings if finding.status is not Status.AGREES] == ["audit", "attacks"]
    assert verdict.outcome is Outcome.ESTABLISHED


def test_without_a_hash_authorship_is_open_and_the_keys_are_told(study: SmallStudy, folder: Path) -> None:
    verdict = verify(folder)
    (finding,) = [finding for finding in verdict.findings if finding.status is Status.OPEN]
    assert verdict.holds and KNOWN in finding.claim
    for key in (study.manifest.server_key, *study.manifest.site_keys.values()):
        assert shown_key(key) in finding.detail
    assert study.manifest.sha256 in finding.detail


@pytest.mark.parametrize("hash_", ["00" * 32, "", "not a hash"])
def test_another_manifest_hash_is_refused(folder: Path, hash_: str) -> None:
    finding = found(folder, KNOWN, manifest_hash=hash_)
    assert finding.status is Status.DISAGREES and "this study's manifest is" in finding.detail


def cut(lines: list[bytes]) -> bytes:
    return b"\n".join(lines)[:-5]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: b"", "no whole line"),
        (lambda lines: b"\n".join(lines), "incomplete: the study is being written, or the ledger was cut: try again"),
        (cut, "incomplete"),
        (lambda lines: b"".join(line + b"\n" for line in [*lines[:3], lines[4], lines[3], *lines[5:]]), "line 4: "),
        (lambda lines: b"".join(line + b"\n" for line in [*lines[:7], *lines[8:]]), "line 8: "),
        (lambda lines: b"".join(line + b"\n" for line in [*lines[:7], lines[6], *lines[7:]]), "line 8: "),
        (lambda lines: b"".join(line + b"\n" for line in [*lines, b""]), "line 19: "),
        (lambda lines: b"".join(line + b"\r\n" for line in lines), "line 1: "),
        (lambda lines: b"[" * 100_000 + b"\n", "line 1: "),
        (lambda lines: b"\xff\n", "line 1: "),
    ],
)
def test_a_ledger_that_was_touched_is_refused_at_its_first_bad_line(
    study: SmallStudy, folder: Path, damage: Callable[[list[bytes]], bytes], said: str
) -> None:
    (folder / LEDGER).write_bytes(damage(study.lines))
    assert said in refused(folder, WHOLE)


def test_an_entry_by_another_key_is_refused(study: SmallStudy, folder: Path) -> None:
    last = Entry.parse(study.lines[6])
    forged = Entry.seal(
        Identity.generate(), entry_type=last.type, body=last.body, sequence=last.sequence, previous=last.previous
    )
    write_ledger(folder, [*study.lines[:6], forged.line])
    assert "line 7: " in refused(folder, WHOLE) and "server" in found(folder, WHOLE).detail


def test_results_of_a_study_whose_end_was_cut_off_are_refused(study: SmallStudy, folder: Path) -> None:
    write_ledger(folder, study.lines[: study.report()["ledger"]["length"]])
    said = refused(folder, FOLLOWS, PAGE_SAYS, CARD_SAYS, TRAINED, FROZEN, USED)
    assert "the ledger says nothing of the study's end" in said


def test_without_enough_closing_signatures_a_study_is_open(study: SmallStudy, folder: Path) -> None:
    write_ledger(folder, study.lines[:-2])
    assert verify(folder).holds
    finding = found(folder, END)
    assert (
        finding.status is Status.OPEN
        and "3 sites signed" in finding.detail
        and "open since attempt 2" in finding.detail
    )


def test_a_running_study_is_checked_as_far_as_it_is(study: SmallStudy, tmp_path: Path) -> None:
    study.write_manifest(tmp_path)
    write_ledger(tmp_path, study.lines[: study.report()["ledger"]["length"]])
    verdict = verify(tmp_path)
    assert verdict.holds
    assert found(tmp_path, END).detail == "the study is not closed: open since attempt 2"
    assert (
        found(tmp_path, PRIVACY).status is Status.AGREES
        and "no report claims it yet" in found(tmp_path, PRIVACY).detail
    )
    assert {found(tmp_path, claim).status for claim in (FOLLOWS, FILES, TRAINED, END)} == {Status.OPEN}
    write_ledger(tmp_path, study.lines[:3])
    assert verify(tmp_path).holds
    assert "not yet agreed to: 2 of 5 sites" in found(tmp_path, "Every site agreed").detail
    assert {found(tmp_path, claim).status for claim in ("unmasked", "counter of charges")} == {Status.OPEN}


def test_a_study_that_used_up_its_attempts_is_confirmed(tmp_path: Path) -> None:
    study = used_up()
    study.close(tmp_path)
    assert verify(tmp_path).holds
    assert "3 of 3 begun; one round closed" in found(tmp_path, "Every attempt").detail


def test_a_study_without_noise_is_confirmed_as_what_it_is(tmp_path: Path) -> None:
    study = ran(noise_multiplier=None)
    study.close(tmp_path)
    assert verify(tmp_path).holds and "NO PRIVACY" in found(tmp_path, PRIVACY).detail
    assert found(tmp_path, PRIVACY).status is Status.NOTHING
    (tmp_path / REPORT).write_bytes(render_json(study.report() | {"epsilon": 1.0}))
    reclosed(study, tmp_path)
    assert "without noise claims privacy" in refused(tmp_path, PRIVACY, FOLLOWS)


def test_the_hash_of_an_earlier_manifest_is_enough(tmp_path: Path) -> None:
    study = ran()
    first = study.manifest
    fields = first.model_dump() | {"version": 2, "previous": first.sha256}
    fields["study"]["training"]["deadline_s"] = 60.0
    study.manifest = validated(Manifest, fields)
    length, head = len(study.ledger.verified.ledger), study.ledger.verified.ledger.head
    study.ledger.append(entries.StudyEntry(manifest=study.manifest))
    study.write_ledger(tmp_path)
    assert found(tmp_path, KNOWN, manifest_hash=first.sha256).status is Status.OPEN, "nobody signed its successor"
    for site, identity in study.identities.items():
        signature = Countersignature.of(
            identity,
            site=site,
            manifest=study.manifest.sha256,
            ledger_length=length,
            ledger_head=head,
            reservation=1,
        )
        study.ledger.append(entries.CountersignatureEntry(countersignature=signature))
    study.close(tmp_path)
    assert verify(tmp_path, manifest_hash=first.sha256).holds
    assert "it is version 1" in found(tmp_path, KNOWN, manifest_hash=first.sha256).detail
    assert "version 2" in found(tmp_path, MANIFEST).detail


def test_a_manifest_that_is_not_the_ledger_s_is_refused(study: SmallStudy, folder: Path) -> None:
    (folder / STUDY).write_text(json.dumps(json.loads((folder / STUDY).read_bytes())), encoding="utf-8")
    assert "not the manifest in force" in refused(folder, MANIFEST, FILES)
    (folder / STUDY).unlink()
    assert "missing" in refused(folder, MANIFEST, FILES)


def test_a_smaller_epsilon_is_refused_whoever_signs_it(study: SmallStudy, folder: Path) -> None:
    report = study.report()
    rewritten(folder, report | {"epsilon": report["epsilon"] * 0.99})
    assert "differs in epsilon" in refused(folder, FOLLOWS, PRIVACY, FILES)
    reclosed(study, folder)
    assert "is certainly above" in refused(folder, PRIVACY, FOLLOWS)


def test_noise_that_does_not_reach_the_target_is_refused(tmp_path: Path) -> None:
    study = SmallStudy(study=small_study(noise_multiplier=1.5, privacy={"target_epsilon": 0.5}))
    study.write_manifest(tmp_path)
    study.write_ledger(tmp_path)
    assert "the target that the sites signed, and it is certainly above" in refused(tmp_path, PRIVACY)


def test_a_claim_between_what_is_certain_and_what_can_be_shown_is_open(
    study: SmallStudy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims._recomputed.cache_clear()
    monkeypatch.setattr(claims, "recomputed_epsilon", lambda *args, **named: 1.02 * recomputed_epsilon(*args, **named))
    finding = found(folder, PRIVACY, manifest_hash=study.manifest.sha256)
    claims._recomputed.cache_clear()
    assert (finding.status, finding.outcome) == (Status.OPEN, Outcome.UNKNOWN)


def test_many_patients_of_whom_few_are_drawn_are_no_false_no(tmp_path: Path) -> None:
    study = SmallStudy(
        study=small_study(
            (200_000,) * 5,
            max_units=250_000,
            noise_multiplier=0.4371,
            privacy={"sampling_probability": 24e-6, "delta": 1e-7, "target_epsilon": 0.5},
            training={"rounds": 20, "max_attempts": 24},
        )
    )
    study.write_manifest(tmp_path)
    study.write_ledger(tmp_path)
    assert found(tmp_path, PRIVACY).status is Status.AGREES


@pytest.mark.parametrize("row", [0, 1])
def test_a_smaller_epsilon_of_any_overlap_is_refused(study: SmallStudy, folder: Path, row: int) -> None:
    report = study.report()
    report["overlap"][row]["epsilon"] *= 0.99
    rewritten(folder, report)
    reclosed(study, folder)
    assert f"overlap.{row}.epsilon" in found(folder, FOLLOWS).detail
    assert "is certainly above" in refused(folder, PRIVACY, FOLLOWS)


@pytest.mark.parametrize("figure", ["noise_multiplier", "over_claimed", "sites_that_kept_theirs"])
def test_what_is_said_of_the_noise_in_a_sum_follows_from_what_its_sites_signed(
    study: SmallStudy, folder: Path, figure: str
) -> None:
    report = study.report()
    (said,) = report["utility"]["rounds"][0]["noise_in_sums"]
    said[figure] = ["site-1"] if figure == "sites_that_kept_theirs" else 1.001 * said[figure]
    rewritten(folder, report)
    reclosed(study, folder)
    assert f"utility.rounds.0.noise_in_sums.0.{figure}" in refused(folder, FOLLOWS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attempts": 1}, "attempts"),
        ({"attempts": True}, "attempts"),
        ({"charges": {}}, "charges.site-1"),
        ({"dropouts": []}, "dropouts"),
        ({"an_award": "best study"}, "an_award"),
        ({"utility": 3}, "not one that this version writes"),
        ({"epsilon": "1"}, "epsilon"),
        ({"epsilon": 10**400}, "epsilon"),
        ({"overlap": [{}]}, "overlap"),
        ({"base_model": "another/model"}, "base_model"),
    ],
)
def test_a_field_that_does_not_follow_from_the_ledger_is_named(
    study: SmallStudy, folder: Path, change: dict[str, Any], named: str
) -> None:
    (folder / REPORT).write_bytes(render_json(study.report() | change))
    reclosed(study, folder)
    finding = found(folder, FOLLOWS)
    assert finding.status is Status.DISAGREES and named in finding.detail
    assert {found(folder, claim).status for claim in (PAGE_SAYS, CARD_SAYS)} == {Status.OPEN}
    assert not any("could not be checked" in finding.detail for finding in verify(folder).findings)


@pytest.mark.parametrize(("archive", "told"), [(None, "federation"), ("44" * 32, "simulation")])
def test_a_simulation_cannot_be_called_a_federation_nor_the_reverse(
    archive: str | None, told: str, tmp_path: Path
) -> None:
    study = SmallStudy(study=small_study(noise_multiplier=1.5), manifest_fields={"app_sha256": archive})
    study.run(lambda site, envelope: False)
    study.close(tmp_path)
    assert verify(tmp_path).holds
    rewritten(tmp_path, study.report() | {"setting": told})
    reclosed(study, tmp_path)
    assert refused(tmp_path, FOLLOWS) == "it differs in setting"


@pytest.mark.parametrize("evaluation", ["a\nb", "a\x1b[2Jb", "a\u2028b", "a\u202eb", "a  b", "a" * 201, ""])
def test_what_is_declared_in_more_than_a_line_of_words_is_no_report(
    study: SmallStudy, folder: Path, evaluation: str
) -> None:
    report = study.report()
    report["utility"]["evaluation"] = evaluation
    (folder / REPORT).write_bytes(render_json(report))
    reclosed(study, folder)
    assert "not one that this version writes" in found(folder, FOLLOWS).detail


def test_a_position_that_got_worse_cannot_be_called_better(study: SmallStudy, folder: Path) -> None:
    harmful, better = study.report(by_position=HARMFUL), study.report()
    for field, kinder in (("verdict", better["utility"]["verdict"]), ("evaluated", "whole records of any length")):
        report = harmful | {"utility": harmful["utility"] | {field: kinder}}
        rewritten(folder, report)
        reclosed(study, folder)
        assert refused(folder, FOLLOWS) == f"it differs in utility.{field}"
    rows = [{**row, "worse": False} for row in harmful["utility"]["by_position"]]
    rewritten(folder, harmful | {"utility": harmful["utility"] | {"by_position": rows}})
    reclosed(study, folder)
    assert refused(folder, FOLLOWS) == "it differs in utility.by_position.1.worse, utility.by_position.2.worse"
    rewritten(folder, harmful)
    reclosed(study, folder)
    assert {found(folder, claim).status for claim in (FOLLOWS, PAGE_SAYS, CARD_SAYS)} == {Status.AGREES}


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b'{"epsilon": NaN}', b"[" * 100_000, b'{"a": ' * 50_000, b"9" * 5000, b"null"]
)
def test_a_report_that_is_no_report_is_refused(folder: Path, text: bytes) -> None:
    (folder / REPORT).write_bytes(text)
    refused(folder, FOLLOWS, PRIVACY, FILES)


@pytest.mark.parametrize(("path", "claim"), [(PAGE, PAGE_SAYS), (CARD, CARD_SAYS)])
def test_a_page_or_card_that_says_something_else_is_refused(
    study: SmallStudy, folder: Path, path: str, claim: str
) -> None:
    text = (folder / path).read_text(encoding="utf-8")
    (folder / path).write_text(text.replace("1.2", "0.2", 1), encoding="utf-8")
    assert "something else" in refused(folder, claim, FILES)
    reclosed(study, folder)
    refused(folder, claim)


def test_another_version_says_that_it_may_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grandrounds.common.system.code_pin.__version__", "9.9")
    finding = found(folder, "This program")
    assert finding.status is Status.OPEN and "this is 9.9" in finding.detail


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    assert list(undetected(folder, random_flips(folder, count=150, seed=seed))) == [], f"seed {seed}"
