import re

import pytest
import typer
from support.study.audited_study import audited_manifest
from typer.testing import CliRunner

from grandrounds.common.audit.bounds import Kind
from grandrounds.common.audit.coins import bits_of, coins
from grandrounds.common.audit.evidence import AuditEvidence, CanaryScores, Protection
from grandrounds.common.errors import GrandRoundsError
from grandrounds.common.schema import known
from grandrounds.common.study.artefacts import AUDIT, MANIFEST
from grandrounds.deploy.audit.subject import read_subject
from grandrounds.deploy.cli.audit import audit

STUDY = """
[model]
name = "tiny"
[training]
rounds = 1
""" + "\n".join(f'[[sites]]\nname = "{name}"\nnominal_units = 20' for name in ("north", "south", "west"))


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(audit)
    return app


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study").mkdir()
    manifest = audited_manifest(attempts=2)
    (tmp_path / "study" / MANIFEST).write_bytes(manifest.canonical)
    return tmp_path / "study"


def run(app, *arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_a_study_s_folder_is_audited_and_the_evidence_attached(app, folder) -> None:
    shown = run(app, folder, "--canaries", 60, "--attach", folder).stdout
    evidence = AuditEvidence.parse((folder / AUDIT).read_bytes())
    evidence.require_bounds()
    for bound in evidence.bounds:
        assert bound.protection in shown
    assert [run.protection for run in evidence.canaries] == [
        "as claimed",
        "noise off",
        "noise forgotten at one site",
        "half the noise",
        "a mask left in",
        "a draw reused",
    ]
    found = {bound.protection: bound.epsilon for bound in evidence.bounds if bound.is_chosen}
    assert found["noise off"] > 10
    assert "Nothing was found that refutes the claim" in shown and "not seen above would pass as well" in shown
    with pytest.raises(GrandRoundsError, match=r"audit.json exists"):
        run(app, folder, "--attach", folder)


def test_synthetic_notes_are_audited_by_the_text_canaries_and_shown_with_what_a_bound_of_0_says(
    app, folder, monkeypatch
) -> None:
    asked: dict[str, int] = {}
    kinds: tuple[Kind, ...] = ("text", "synthetic notes")

    def scores(manifest, *, count, synthetic_notes, seed, **_):
        asked.update(count=count, synthetic_notes=synthetic_notes)
        bits = bits_of(coins("text", count, seed=seed)).tolist()
        sizes: tuple[tuple[Protection, list[bool]], ...] = (
            ("as claimed", [not bit for bit in bits]),
            ("noise off", bits),
        )
        return tuple(
            CanaryScores.of(kind, protection, scores=found, bits=bits) for kind in kinds for protection, found in sizes
        )

    monkeypatch.setattr("grandrounds.deploy.audit.audit.text_scores", scores)
    options = ("--canaries", 60, "--text-canaries", 200, "--synthetic-notes", 500, "--attach", folder)
    shown = run(app, folder, *options).stdout
    assert asked == {"count": 200, "synthetic_notes": 500}
    planted = re.search(r"200 planted text canaries \(by 500 synthetic notes alone\), (\d+) of them in the twin", shown)
    assert "a bound of 0 says that it found nothing, not that nothing is in them" in shown
    evidence = AuditEvidence.parse((folder / AUDIT).read_bytes())
    evidence.require_bounds()
    assert planted is not None and int(planted[1]) == sum(evidence.canaries[-1].bits)
    assert evidence.synthetic_notes == 500 and any("auxiliary adapter" in said for said in evidence.stated)
    assert known(evidence.chosen("synthetic notes")).epsilon == 0
    assert known(evidence.chosen("synthetic notes", "noise off")).epsilon > 2


def test_a_refuted_claim_is_told_by_the_exit_code(app, folder, monkeypatch) -> None:
    monkeypatch.setattr(AuditEvidence, "claimed", 0.001)
    told = run(app, folder, "--canaries", 60)
    assert told.exit_code == 1 and "THE CLAIM IS REFUTED" in told.stdout


def test_a_study_toml_is_audited_before_there_is_a_study(tmp_path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    said: list[str] = []
    manifest = read_subject(tmp_path / "study.toml").completed(said.append).manifest(said.append)
    assert said == ["calibrating the noise", "loading the model tiny, for the size of its adapter"]
    assert manifest.study.privacy.target_epsilon == 4
    assert [site.name for site in manifest.study.sites] == ["north", "south", "west"]
    assert manifest.dimension > 0


def test_evidence_is_not_attached_to_a_study_of_other_parameters(app, folder, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST).write_bytes(audited_manifest(attempts=3).canonical)
    with pytest.raises(GrandRoundsError, match="other parameters"):
        run(app, folder, "--canaries", 20, "--attach", other)
    assert not (other / AUDIT).exists()


def test_evidence_is_not_attached_to_a_study_of_another_size(app, folder, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    larger = audited_manifest(attempts=2).model_copy(update={"dimension": 2048, "tensor_sizes": (2048,)})
    (other / MANIFEST).write_bytes(larger.canonical)
    with pytest.raises(GrandRoundsError, match="trains 2,048 numbers, and the one to be audited 1,024"):
        run(app, folder, "--canaries", 20, "--attach", other)
    assert not (other / AUDIT).exists()


@pytest.fixture
def nothing_expensive(monkeypatch) -> None:
    for name in ("deploy.audit.subject.complete_study", "common.model.language_model.LanguageModel.load"):
        monkeypatch.setattr(f"grandrounds.{name}", lambda *_, **__: pytest.fail("it was begun"))


PUBLIC = '[data]\npublic = "public.jsonl"\npublic_units = 1\n'
MANY = "".join(f'\n[[sites]]\nname = "site-{number}"\nnominal_units = 20' for number in range(48))


@pytest.mark.usefixtures("nothing_expensive")
@pytest.mark.parametrize(
    ("written", "options", "named"),
    [
        (STUDY, ["--synthetic-notes", 8], "8 synthetic notes, and no text canaries"),
        (STUDY, ["--text-canaries", 5], "5 text canaries"),
        (PUBLIC + STUDY, ["--text-canaries", 20], "text canaries of a study with a first adapter or public records"),
        (STUDY + MANY, ["--text-canaries", 20], "text canaries at 51 sites"),
        ("[privacy]\nnoise = false\n" + STUDY, [], "the study adds no noise"),
        (STUDY, ["--attach", "empty"], r"empty holds no study\.json"),
        (STUDY, ["--attach", "study.toml"], r"study\.toml holds no study\.json"),
    ],
)
def test_what_cannot_be_audited_so_is_refused_before_anything_is_calibrated_or_loaded(
    app, tmp_path, monkeypatch, written, options, named
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "public.jsonl").write_text('{"patient_id": "nobody", "text": "well rested"}\n')
    (tmp_path / "study.toml").write_text(written)
    with pytest.raises(GrandRoundsError, match=named):
        run(app, "study.toml", *options)


def test_evidence_for_a_study_of_other_parameters_is_refused_before_the_model_is_loaded(
    app, folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(
        "grandrounds.common.model.language_model.LanguageModel.load", lambda *_, **__: pytest.fail("it was loaded")
    )
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(GrandRoundsError, match="other parameters"):
        run(app, tmp_path / "study.toml", "--attach", folder)


@pytest.mark.parametrize("name", ["absent", "empty", "notes.csv"])
def test_what_is_no_study_is_refused_with_what_to_do(app, tmp_path, name) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("name,note\n")
    with pytest.raises(GrandRoundsError) as refusal:
        run(app, tmp_path / name)
    assert "study.toml" in refusal.value.diagnostics()


def test_a_study_of_another_program_is_refused(app, tmp_path) -> None:
    manifest = audited_manifest().model_copy(update={"package_sha256": "00" * 32})
    (tmp_path / MANIFEST).write_bytes(manifest.canonical)
    with pytest.raises(GrandRoundsError, match="the study runs grandrounds"):
        run(app, tmp_path / MANIFEST)
