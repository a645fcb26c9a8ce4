"""``grandrounds verify``: a verdict for people and for machines, and an exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.places import ROOT
from support.study.verified_study import SmallStudy, ran, write_ledger
from typer.testing import CliRunner

from grandrounds.common.crypto.identity import shown_key
from grandrounds.common.study.artefacts import PAGE
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.verify.claims import CLAIMS
from grandrounds.deploy.verify.verdict import Outcome


def verify(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)], catch_exceptions=False)


def test_people_get_a_mark_a_source_and_a_reason_for_every_claim(study: SmallStudy, folder: Path) -> None:
    result = verify(folder, "--manifest-hash", study.manifest.sha256)
    assert result.exit_code == 0
    assert result.stdout.count("✓ agrees: ") == 18 and "from ledger/entries.jsonl: 18 entries" in result.stdout
    assert (
        "Of 20 claims 18 agree, 0 do not, and 0 cannot be established, of 2 there is nothing to check." in result.stdout
    )
    assert "Every claim that is required is established (exit code 0)." in result.stdout
    assert " 17 agree, 1 does not, and " in verify(folder, "--manifest-hash", "ab" * 32).stdout
    (folder / PAGE).write_text("all is well", encoding="utf-8")
    result = verify(folder)
    assert result.exit_code == 1
    assert "✗ DOES NOT AGREE: The page says what the report says\n" in result.stdout
    assert "– cannot be established: It is the manifest that you know\n" in result.stdout
    assert shown_key(study.manifest.server_key) in result.stdout, "no line is broken: keys are there to be copied"


@pytest.mark.parametrize(("damage", "holds"), [(lambda page: None, True), (Path.unlink, False)])
def test_machines_get_the_same_as_json(
    study: SmallStudy, folder: Path, damage: Callable[[Path], None], holds: bool
) -> None:
    damage(folder / PAGE)
    result = verify(folder, "--manifest-hash", study.manifest.sha256, "--json")
    verdict = json.loads(result.stdout)
    assert (verdict["holds"], result.exit_code) == (holds, 0 if holds else 1)
    assert verdict["outcome"] == ("established" if holds else "false")
    assert all(
        set(finding) == {"name", "claim", "recomputed_from", "status", "detail"} for finding in verdict["findings"]
    )
    assert ("does not agree" in {finding["status"] for finding in verdict["findings"]}) is not holds


def test_each_outcome_has_a_code_of_its_own(study: SmallStudy, folder: Path, tmp_path: Path) -> None:
    known = ("--manifest-hash", study.manifest.sha256)
    codes = {"established": verify(folder, *known).exit_code, "no hash": verify(folder).exit_code}
    (folder / PAGE).write_text("all is well", encoding="utf-8")
    codes["false"] = verify(folder, *known).exit_code
    bare, silent, began = tmp_path / "bare", tmp_path / "silent", tmp_path / "began"
    for path in (bare, silent, began):
        path.mkdir()
    study.write_manifest(bare)
    write_ledger(bare, study.lines[:1])
    codes["a bare manifest"] = verify(bare, *known).exit_code
    study.write_manifest(began)
    write_ledger(began, study.lines[: study.report()["ledger"]["length"]])
    codes["open"] = verify(began).exit_code
    without = ran(noise_multiplier=None)
    without.close(silent)
    codes["no noise"] = verify(silent, "--manifest-hash", without.manifest.sha256).exit_code
    assert codes == {
        "established": 0,
        "no hash": 6,
        "false": 1,
        "a bare manifest": 4,
        "open": 4,
        "no noise": 3,
    }


def test_a_study_that_sites_have_not_signed_at_its_end_is_unfinished(study: SmallStudy, folder: Path) -> None:
    write_ledger(folder, study.lines[:-2])
    assert verify(folder, "--manifest-hash", study.manifest.sha256).exit_code == Outcome.UNFINISHED


def test_another_program_leaves_a_claim_unknown(
    study: SmallStudy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grandrounds.common.system.code_pin.__version__", "9.9")
    known = ("--manifest-hash", study.manifest.sha256)
    assert verify(folder, *known).exit_code == verify(folder).exit_code == Outcome.UNKNOWN
    assert verify(folder, *known, "--require", "privacy", "--require", "end").exit_code == 0


def test_what_a_caller_insists_on_is_enough_where_nothing_is_false(study: SmallStudy, folder: Path) -> None:
    known = ("--manifest-hash", study.manifest.sha256)
    assert verify(folder, "--require", "ledger", "--require", "privacy").exit_code == 0
    assert verify(folder, "--require", "authorship").exit_code == Outcome.UNVOUCHED
    assert verify(folder, *known, "--require", "audit").exit_code == Outcome.UNKNOWN, "none is attached"
    (folder / PAGE).unlink()
    assert verify(folder, *known, "--require", "ledger").exit_code == Outcome.FALSE, "the page was not asked for"
    wrong = verify(folder, "--require", "honesty")
    assert wrong.exit_code == 2 and all(word in wrong.output for word in ("honesty", "choose", "authorship"))


def test_a_study_without_noise_agrees_on_no_privacy(tmp_path: Path) -> None:
    study = ran(noise_multiplier=None)
    study.close(tmp_path)
    result = verify(tmp_path, "--manifest-hash", study.manifest.sha256)
    assert "✗ NOTHING IS CLAIMED: The privacy that is claimed\n" in result.stdout
    assert "agrees: The privacy" not in result.stdout and "and one is not claimed at all." in result.stdout
    assert verify(tmp_path, "--require", "trained").exit_code == 0


def test_help_and_operations_say_what_each_code_means() -> None:
    told = " ".join(verify("--help").output.replace("│", " ").split())
    operations = (ROOT / "deploy" / "OPERATIONS.md").read_text(encoding="utf-8")
    for outcome in Outcome:
        assert f"{outcome.value}: {outcome.said}." in told
        assert f"| {outcome.value} | {outcome.said} |" in operations
    for claim in CLAIMS:
        assert f"`{claim.name}`" in operations


def test_a_folder_that_does_not_exist_is_a_diagnosis(tmp_path: Path) -> None:
    command = "import sys; from grandrounds.deploy.cli.main import main; sys.argv[0] = 'grandrounds'; main()"
    missing = subprocess.run(
        [sys.executable, "-c", command, "verify", tmp_path / "missing"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1 and "cannot be read" in missing.stderr and "Traceback" not in missing.stderr


def test_no_model_is_loaded(folder: Path) -> None:
    probe = (
        "import sys; from pathlib import Path; from grandrounds.deploy.verify.claims import verify\n"
        f"assert verify(Path({str(folder)!r})).holds\n"
        "print(sorted({'torch', 'transformers', 'peft', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
