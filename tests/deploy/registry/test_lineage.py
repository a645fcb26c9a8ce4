"""A release whose study began with another's adapter: what becomes of the one is said of the other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.registry_commands import done, ran
from support.study.federation import small_study
from support.study.verified_study import SmallStudy

from grandrounds.common.errors import GrandRoundsError, StorageError
from grandrounds.deploy.registry import folder as registry_folder


def continued_study(number: int, before: str) -> SmallStudy:
    """A study that says that it began with what the study of manifest ``before`` left."""
    study = small_study(
        noise_multiplier=1.5, privacy={"sampling_probability": 0.25}, training={"rounds": 1, "max_attempts": 2}
    )
    began = {"first_adapter": "sha256:" + "ab" * 32, "first_study": before, "first_text": "(1.25, 10⁻³)-DP"}
    model = study.model.model_copy(update=began)
    small = SmallStudy(
        study=study.model_copy(update={"model": model}), manifest_fields={"study_id": f"{number:02x}" * 32}
    )
    small.run(lambda site, envelope: False)
    return small


@pytest.fixture(scope="module")
def made(closed: tuple[SmallStudy, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a release, one that began with it, and one that began with that one; not to be changed."""
    place = tmp_path_factory.mktemp("registry")
    done("init", place / "registry")
    (study, folder), studies = closed, {}
    for number, name in enumerate(("first", "second", "third")):
        if number:
            study, folder = continued_study(number, study.manifest.sha256), place / name
            study.close(folder)
        studies[name] = done(
            "add", place / "registry", folder, "--name", name, "--manifest-hash", study.manifest.sha256
        )
    assert "began with" not in studies["first"] and "goes back to first@1" in studies["third"]
    return place / "registry"


@pytest.fixture
def registry(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "registry")


def test_who_withdraws_a_release_learns_which_others_go_back_to_it_and_who_has_them(
    registry: Path, study: SmallStudy, tmp_path: Path
) -> None:
    done("received", registry, "third", "--by", "Bergen")
    assert "WARNING" not in done("show", registry, "third")
    assert "led to       third@1, not withdrawn, received by: Bergen" in done("show", registry, "first")
    said = done("withdraw", registry, "first@1", "--reason", "repeats a patient")
    assert "second@1 goes back to first@1 and is not withdrawn: it was received by: nobody" in said
    assert "third@1 goes back to first@1 and is not withdrawn: it was received by: Bergen" in said
    shown = done("show", registry, "second")
    assert f"began with   what the study of manifest {study.manifest.sha256} left" in shown
    warning = "goes back to first@1, which was withdrawn on"
    assert warning in shown and "repeats a patient. Withdraw it, too" in shown
    assert warning in done("received", registry, "third", "--by", "Oslo", "--output", tmp_path / "copy")
    lineage: dict[str, Any] = json.loads(done("show", registry, "third", "--json"))["lineage"]
    assert lineage["before"] == ["second@1", "first@1"] and lineage["withdrawn"] == ["first@1"]
    assert "third@1 goes back to second@1" in done("withdraw", registry, "second@1", "--reason", "the same")


def test_a_manifest_that_is_not_the_one_released_withholds_no_withdrawal_and_is_no_answer(registry: Path) -> None:
    manifest = registry / "releases" / "second" / "1" / "study.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"first_study", b"other_study"))
    said = ran("withdraw", registry, "first@1", "--reason", "repeats a patient")
    assert isinstance(said.exception, GrandRoundsError) and "is not what was released" in said.exception.diagnostics()
    assert "first@1 is withdrawn" in said.stdout and "WITHDRAWN" in done("list", registry)
    assert isinstance(ran("show", registry, "second").exception, GrandRoundsError)


def test_no_copy_is_out_that_no_entry_names(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is stopped while the copy is written has named its receiver."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    assert isinstance(
        ran("received", registry, "first", "--by", "x", "--output", tmp_path / "there").exception, StorageError
    )
    assert [note["type"] for note in json.loads(done("log", registry, "--json"))].count("adapter-received") == 0

    def stopped(folder: Path, files: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry_folder, "write_results", stopped)
    ran("received", registry, "first", "--by", "Bergen", "--output", tmp_path / "copy")
    assert json.loads(done("show", registry, "first", "--json"))["received"][0]["receiver"] == "Bergen"
    assert "received by: Bergen" in done("withdraw", registry, "first@1", "--reason", "x")
