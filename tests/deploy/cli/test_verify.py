"""``grandrounds verify``: a verdict for people and for machines, and an exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.study.verified_study import SmallStudy
from typer.testing import CliRunner

from grandrounds.common.study.artefacts import PAGE
from grandrounds.deploy.cli.main import app


def verify(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)], catch_exceptions=False)


def test_people_get_a_mark_a_source_and_a_reason_for_every_claim(study: SmallStudy, folder: Path) -> None:
    result = verify(folder, "--manifest-hash", study.manifest.sha256)
    assert result.exit_code == 0
    assert result.stdout.count("✓ agrees: ") == 17 and "from ledger/entries.jsonl: 18 entries" in result.stdout
    assert "Of 17 claims 17 agree, 0 do not, and 0 cannot be established." in result.stdout
    (folder / PAGE).write_text("all is well", encoding="utf-8")
    result = verify(folder)
    assert result.exit_code == 1
    assert "✗ DOES NOT AGREE: The page says what the report says\n" in result.stdout
    assert "– cannot be established: It is the manifest that you know\n" in result.stdout
    assert study.manifest.server_key in result.stdout, "no line is broken: keys are there to be copied"


@pytest.mark.parametrize(("damage", "holds"), [(lambda page: None, True), (Path.unlink, False)])
def test_machines_get_the_same_as_json(
    study: SmallStudy, folder: Path, damage: Callable[[Path], None], holds: bool
) -> None:
    damage(folder / PAGE)
    result = verify(folder, "--manifest-hash", study.manifest.sha256, "--json")
    verdict = json.loads(result.stdout)
    assert (verdict["holds"], result.exit_code) == (holds, 0 if holds else 1)
    assert all(set(finding) == {"claim", "recomputed_from", "status", "detail"} for finding in verdict["findings"])
    assert ("does not agree" in {finding["status"] for finding in verdict["findings"]}) is not holds


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
