"""A study that goes on where another one stopped: the adapter is the earlier one's, and so is its claim."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.study.tiny_models import save_tiny_model
from typer.testing import CliRunner

from grandrounds.common.errors import GrandRoundsError, StorageError, StudyError
from grandrounds.common.model.adapter import vector_sha256
from grandrounds.common.model.base_model import load_base
from grandrounds.common.schema import known, validated
from grandrounds.common.study.artefacts import ADAPTER, CARD, LEDGER, PAGE, REPORT
from grandrounds.common.study.first_adapter import FirstAdapter, with_pinned_adapter
from grandrounds.common.study.study import Study
from grandrounds.common.system import files
from grandrounds.deploy.adapter import gguf_file
from grandrounds.deploy.adapter.continuation import continued
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.builtin import models
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.generate.provenance import claimed, in_short
from grandrounds.deploy.simulation.simulate import Result, simulate
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Outcome, Status

SITES = ("north", "south", "west")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


def a_study(base: Path, *, noise: bool = True, **model: Any) -> Study:
    fields = {
        "model": {"name": str(base), "target_modules": ["q_proj", "v_proj"], "rank": 2, **model},
        "data": {"max_tokens": 24, "evaluation": "synthetic"},
        "privacy": {"noise": noise, "sampling_probability": 0.5},
        "training": {"rounds": 1},
        "sites": [{"name": name, "nominal_units": 8} for name in SITES],
    }
    return validated(Study, fields)


def simulated(study: Study, folder: Path) -> Result:
    cohorts = {name: [{"patient_id": f"{name}-{i}", "text": f"{name} slept {i}"} for i in range(8)] for name in SITES}
    return simulate(study, cohorts, evaluation=[{"patient_id": "e", "text": "well"}], output=folder)


@pytest.fixture(scope="module")
def earlier(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished study with a claim; not to be changed."""
    return simulated(a_study(base), tmp_path_factory.mktemp("results") / "earlier")


def continue_(study: Path, folder: Path, *words: str) -> str:
    found = CliRunner().invoke(app, ["adapter", "continue", str(study), "--from", str(folder), *words])
    if isinstance(found.exception, GrandRoundsError):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def described(base: Path, tmp_path: Path) -> Path:
    """A study's file that names its first adapter, which is not there yet."""
    path = tmp_path / "study.toml"
    sites = "".join(f'[[sites]]\nname = "{name}"\nnominal_units = 8\n' for name in SITES)
    path.write_text(
        f'[model]\nname = "{base}"\ntarget_modules = ["q_proj", "v_proj"]\nrank = 2\n'
        f'first_adapter = "{tmp_path / "first.safetensors"}"\n{sites}'
    )
    return path


def test_a_next_stage_begins_with_what_the_earlier_left_and_carries_its_claim(
    base: Path, earlier: Result, described: Path, tmp_path: Path
) -> None:
    folder, manifest = known(earlier.folder), earlier.manifest
    said = " ".join(continue_(described, folder, "--manifest-hash", manifest.sha256).split())
    assert manifest.sha256 in said and "as you expected" in said and "the sum of both ε" in said
    first = FirstAdapter.read(tmp_path / "first.safetensors")
    for name, tensor in FinishedAdapter.read(folder).tensors.items():
        assert np.array_equal(first.tensors[name], tensor), name
    later = simulated(a_study(base, first_adapter=str(tmp_path / "first.safetensors")), tmp_path / "later")
    assert later.manifest.adapter_sha256 == vector_sha256(earlier.adapter)
    for path in (REPORT, PAGE, CARD):
        text = (tmp_path / "later" / path).read_text(encoding="utf-8")
        assert manifest.sha256 in text and "-DP for each patient of study" in text, path
        assert "Patients of the earlier study" in text, path
    verdict = verify(tmp_path / "later", later.manifest.sha256)
    assert verdict.outcome is Outcome.ESTABLISHED
    frozen = next(finding for finding in verdict.findings if finding.name == "frozen")
    assert f"which study {manifest.sha256} left" in frozen.detail


def test_what_a_stage_would_begin_with_is_shown_before_it_is_written(
    earlier: Result, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it then cannot be."""

    def refused(path: Path, data: bytes) -> None:
        assert path == tmp_path / "first.safetensors"
        raise StorageError("the disk is full", why="of this test", fix="none")

    monkeypatch.setattr(files, "write_atomically", refused)
    found = CliRunner().invoke(app, ["adapter", "continue", str(described), "--from", str(known(earlier.folder))])
    assert isinstance(found.exception, StorageError)
    said = " ".join(found.output.split())
    assert f"the earlier study is that of the manifest {earlier.manifest.sha256}" in said
    assert "-DP for each patient of study" in said and "becomes the first adapter; its SHA-256 is" in said
    assert "is written" not in said


def test_without_the_hash_nothing_shows_which_study_it_was(earlier: Result, described: Path) -> None:
    assert "nothing shows" in " ".join(continue_(described, known(earlier.folder)).split())


def test_no_stage_follows_what_is_not_shown_to_have_a_claim(
    base: Path, earlier: Result, described: Path, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match="without privacy"):
        continue_(described, known(simulated(a_study(base, noise=False), tmp_path / "open").folder))
    shutil.copytree(known(earlier.folder) / ADAPTER, tmp_path / "alone")
    with pytest.raises(StudyError, match="an adapter alone"):
        continue_(described, tmp_path / "alone")
    shutil.copytree(known(earlier.folder), tmp_path / "changed")
    report = tmp_path / "changed" / REPORT
    report.write_text(report.read_text().replace('"epsilon": ', '"epsilon": 0'))
    with pytest.raises(StudyError, match="claim of the adapter's study is not shown"):
        continue_(described, tmp_path / "changed")
    with pytest.raises(StudyError, match="not shown to be its study's"):
        continue_(described, known(earlier.folder), "--manifest-hash", "ab" * 32)
    assert not (tmp_path / "first.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rank = 2", "rank = 2\nalpha = 3.0", "alpha, rank, rslora or dora"),
        ("rank = 2", "rank = 2\nrslora = true", "alpha, rank, rslora or dora"),
        ("rank = 2", 'rank = 2\nadapter = "core"', "core adapter is not continued"),
        ("first_adapter", "# first_adapter", "names no first adapter"),
    ],
)
def test_the_same_numbers_are_not_taken_for_another_adapter(
    earlier: Result, described: Path, old: str, new: str, named: str
) -> None:
    described.write_text(described.read_text().replace(old, new, 1))
    with pytest.raises(StudyError, match=named):
        continue_(described, known(earlier.folder))


def test_a_study_calls_an_earlier_one_by_no_other_name(
    base: Path, earlier: Result, described: Path, tmp_path: Path
) -> None:
    continue_(described, known(earlier.folder))
    first = str(tmp_path / "first.safetensors")
    pinned = with_pinned_adapter(a_study(base, first_adapter=first)).model
    assert pinned.first_study == earlier.manifest.sha256
    changes: list[tuple[dict[str, Any], str]] = [
        ({"first_study": "ab" * 32}, "names abab"),
        ({"first_text": "terms"}, "first_text"),
    ]
    for changed, named in changes:
        with pytest.raises(StudyError, match=named):
            with_pinned_adapter(a_study(base, first_adapter=first, **changed))


def test_a_third_stage_says_that_the_second_had_one_before_it_and_claims_keep_their_conditions(
    base: Path, earlier: Result, tmp_path: Path
) -> None:
    def next_(before: Path, name: str) -> Study:
        first = continued(a_study(base, first_adapter="first"), FinishedAdapter.read(before))
        (tmp_path / name).write_bytes(first.data)
        return a_study(base, first_adapter=str(tmp_path / name))

    simulated(next_(known(earlier.folder), "a"), tmp_path / "second")
    second = FinishedAdapter.read(tmp_path / "second")
    text = continued(a_study(base, first_adapter="first"), second).made.text
    assert f"at one site at most, which began with what the study of manifest {earlier.manifest.sha256[:12]}" in text
    page = (tmp_path / "second" / PAGE).read_text(encoding="utf-8")
    assert "a claim for records bounds nothing for a patient" in page and "as the study says" in page
    claim = known(claimed(second))
    assert earlier.manifest.sha256 in claim["began_with"] and "began with another adapter" in in_short(claim)


def test_a_merged_model_and_a_file_for_llama_cpp_have_the_claim_and_the_one_before_it_where_it_is_established(
    base: Path, earlier: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = continued(a_study(base, first_adapter="first"), FinishedAdapter.read(known(earlier.folder)))
    (tmp_path / "first").write_bytes(first.data)
    later = simulated(a_study(base, first_adapter=str(tmp_path / "first")), tmp_path / "later")
    shutil.copytree(tmp_path / "later", tmp_path / "unsigned")
    ledger = tmp_path / "unsigned" / LEDGER
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[: -len(SITES)]))
    monkeypatch.setattr(gguf_file, "require_converter", lambda: None)
    monkeypatch.setattr(gguf_file, "_convert", lambda folder, file, precision: file.write_bytes(b"GGUF"))
    monkeypatch.setattr(gguf_file, "_loaded", lambda file: load_base(file.with_name("merged"), precision="float32"))
    for name, established in (("later", True), ("unsigned", False)):
        words = ["--manifest-hash", later.manifest.sha256]
        out, file = tmp_path / f"{name}-merged", tmp_path / f"{name}.gguf"
        for made in (["merge", "--output", str(out)], ["export", "--gguf", str(file)]):
            ran = CliRunner().invoke(app, ["adapter", made[0], str(tmp_path / name), *made[1:], *words])
            assert ran.exit_code == 0, ran.exception
        for card in (out / "README.md", tmp_path / f"{name}.gguf.README.md"):
            text = card.read_text(encoding="utf-8")
            assert ("differentially private for each patient" in text) is established, text
            assert (earlier.manifest.sha256 in text and "all their ε add up" in text) is established
            assert ("No claim of privacy goes with it" in text) is not established
            assert "Base model:" in text and later.manifest.sha256 in text and "Nobody vouched" not in text
    file.unlink()
    with pytest.raises(StorageError, match=r"gguf\.README\.md exists"):
        list(gguf_file.export_gguf(FinishedAdapter.read(tmp_path / "later"), base, file, precision="f32"))
    assert "Nobody vouched for" in FinishedAdapter.read(tmp_path / "later").privacy


def test_verify_refuses_a_study_that_calls_an_earlier_one_public_text(
    base: Path, earlier: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = continued(a_study(base, first_adapter="first"), FinishedAdapter.read(known(earlier.folder)))
    (tmp_path / "first").write_bytes(first.data)
    real = with_pinned_adapter

    def called_public(study: Study) -> Study:
        model = real(study).model.model_copy(update={"first_study": None, "first_text": "an ontology"})
        return study.model_copy(update={"model": model})

    monkeypatch.setattr(models, "with_pinned_adapter", called_public)
    later = simulated(a_study(base, first_adapter=str(tmp_path / "first")), tmp_path / "later")
    finding = next(f for f in verify(tmp_path / "later", later.manifest.sha256).findings if f.name == "frozen")
    assert finding.status is Status.DISAGREES and earlier.manifest.sha256 in finding.detail


def test_no_earlier_study_is_named_where_nothing_of_it_is_begun_with(base: Path) -> None:
    with pytest.raises(StudyError, match="first_study: the study of a first_adapter"):
        a_study(base, first_study="ab" * 32)
