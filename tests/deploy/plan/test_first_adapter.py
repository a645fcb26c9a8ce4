"""A first adapter of public text: made as it says, refused elsewhere, and named in all that a study leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from support.study.tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from grandrounds.client.site.assembly import sampler_of
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import GrandRoundsError, ModelError, StudyError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.schema import known, validated
from grandrounds.common.study.artefacts import CARD, CORE, MANIFEST, PAGE, PREPARED, PUBLIC, REPORT, WEIGHTS
from grandrounds.common.study.first_adapter import FirstAdapter, Made, first_adapter_of
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.public_records import PublicRecords
from grandrounds.common.study.study import Study
from grandrounds.deploy.cli.adapter import adapter as commands
from grandrounds.deploy.plan.first_adapter import prepare
from grandrounds.deploy.plan.instant import dp_sgd_of
from grandrounds.deploy.plan.trial import public_units
from grandrounds.deploy.simulation.simulate import simulate
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Outcome, Status

SITES = ("north", "south", "west")
TERMS = ("a cough that lasts", "pain in the chest", "a rash on both arms", "loss of weight", "fever at night")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "terms.jsonl"
    file.write_text("".join(json.dumps({"patient_id": term, "text": term}) + "\n" for term in TERMS))
    return file


def a_study(base: Path, file: Path | None, **model: Any) -> Study:
    named = {} if file is None else {"first_adapter": str(file)}
    fields = {
        "model": {"name": str(base), "target_modules": ["q_proj", "v_proj"], "rank": 2, **named, **model},
        "data": {"max_tokens": 24, "evaluation": "synthetic"},
        "privacy": {"noise": False, "sampling_probability": 1, "clipping_norm": 1.0},
        "training": {"rounds": 1, "optimizer": "sgd", "learning_rate": 0.5},
        "sites": [{"name": name, "nominal_units": 1} for name in SITES],
    }
    return validated(Study, fields)


def units_of(base: Path, text: Path, study: Study) -> list[Any]:
    return public_units(text, study, Tokenisation.load(str(base)))


def weight_gradients(base: Path, units: list[Any], modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """By autograd of the base model alone, each record without padding."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for unit in units:
        tokens = torch.tensor(unit[0].token_ids[unit[0].labels >= 0], dtype=torch.int64)[None]
        plain(input_ids=tokens, labels=tokens).loss.backward()
    return {
        name.removesuffix(".weight"): parameter.grad
        for name, parameter in plain.named_parameters()
        if name.removesuffix(".weight").endswith(modules) and parameter.grad is not None
    }


@pytest.mark.parametrize("kind", ["ffa", "core"])
def test_a_reads_where_the_gradients_of_public_text_are_and_its_scale_is_a_drawn_one_s(
    base: Path, text: Path, kind: str, tmp_path: Path
) -> None:
    study = a_study(base, tmp_path / "first", adapter=kind)
    made = prepare(study, text, said="terms")
    units = units_of(base, text, study)
    for layer, gradient in weight_gradients(base, units, ("q_proj", "v_proj")).items():
        left, _, right = torch.linalg.svd(gradient)
        a = torch.from_numpy(made.first.tensors[f"base_model.model.{layer}.lora_A.weight"])
        torch.testing.assert_close(a @ a.T, torch.eye(2) * made.scale**2 / 3)
        torch.testing.assert_close((a @ right[:2].T).abs(), torch.eye(2) * made.scale / 3**0.5, atol=1e-3, rtol=1e-3)
        if kind == "core":
            b = torch.from_numpy(made.first.tensors[f"base_model.model.{layer}.lora_B.weight"])
            torch.testing.assert_close(
                left[:, :2].T @ gradient @ right[:2].T, b.T @ gradient @ a.T * 3**0.5 / made.scale
            )
    drawn = LanguageModel.load(base, a_study(base, None).model.lora, seed=0)
    begun = LanguageModel.load(base, study.model.lora, seed=0)
    made.first.put_on(begun)
    norms = [np.median(dp_sgd_of(study, sampler_of(study, model)).norms(units)) for model in (drawn, begun)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0
    assert made.norm == pytest.approx(norms[0])
    assert made.by_chance == pytest.approx(2 / 16) and made.by_chance < made.caught <= 1
    assert prepare(study, text, said="terms").first.data == made.first.data


def test_a_start_that_is_trained_on_public_text_predicts_it_better(base: Path, text: Path, tmp_path: Path) -> None:
    study = a_study(base, tmp_path / "first")
    first = prepare(study, text, said="terms", steps=4).first
    model = LanguageModel.load(base, study.model.lora, seed=0)
    examples = [unit[0] for unit in units_of(base, text, study)]
    before = model.perplexity(examples, model.get_adapter()).whole
    first.put_on(model)
    assert model.perplexity(examples, model.get_adapter()).whole < 0.95 * before


def a_first(base: Path, **model: Any) -> FirstAdapter:
    of = LanguageModel.load(base, a_study(base, None, **model).model.lora, seed=0)
    return FirstAdapter.of(of.tensors, Made(base_sha256=of.folder_sha256, text="terms", text_sha256="00" * 32))


def test_a_first_adapter_of_another_model_or_adapter_is_refused(base: Path) -> None:
    model = LanguageModel.load(base, a_study(base, None).model.lora, seed=0)
    first = a_first(base)
    other = FirstAdapter.of(first.tensors, first.made.model_copy(update={"base_sha256": "11" * 32}))
    with pytest.raises(StudyError, match=f"another base model than the study's: its SHA-256 is {'11' * 32}"):
        other.put_on(model)
    with pytest.raises(StudyError, match=r"lora_A.weight has the shape \[3, 16\] in it, and \[2, 16\] in the study"):
        a_first(base, rank=3).put_on(model)
    with pytest.raises(StudyError, match="has the shape none in it"):
        a_first(base, target_modules=["v_proj"]).put_on(model)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "is no first adapter"),
        (lambda data: data.replace(b"grandrounds", b"grandmother"), "is no first adapter"),
        (lambda data: data[:-4] + np.float32(np.nan).tobytes(), "not finite"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_first_adapter_is_refused(
    base: Path, tmp_path: Path, damage: Callable[[bytes], bytes] | None, reason: str
) -> None:
    file = tmp_path / "first"
    if damage is not None:
        file.write_bytes(damage(a_first(base).data))
    with pytest.raises(StudyError, match=reason):
        first_adapter_of(a_study(base, file))


def test_a_layer_that_is_not_linear_has_no_a_of_public_text(base: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="embed_tokens is no linear layer"):
        prepare(a_study(base, tmp_path / "first", target_modules=["embed_tokens"]), text, said="terms")


def test_a_study_can_have_no_core_adapter_that_was_not_made_of_public_text(base: Path) -> None:
    for model, reason in (
        ({"adapter": "core"}, "model.first_adapter: a core adapter has A and B of public text"),
        ({"adapter": "core", "first_adapter": "x", "dora": True}, "model.dora: it is not built"),
        ({"a_init": "orthonormal", "first_adapter": "x"}, "model.a_init: A is that of first_adapter"),
    ):
        with pytest.raises(StudyError, match=reason):
            a_study(base, None, **model)


@pytest.fixture(scope="module")
def made(base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a core adapter, made by the command."""
    folder = tmp_path_factory.mktemp("made")
    file, described = folder / "first.safetensors", folder / "study.toml"
    sites = "".join(f'[[sites]]\nname = "{name}"\nnominal_units = 1\n' for name in SITES)
    described.write_text(
        f'[model]\nname = "{base}"\ntarget_modules = ["q_proj", "v_proj"]\nrank = 2\nadapter = "core"\n'
        f'first_adapter = "{file}"\n[data]\nmax_tokens = 24\n{sites}'
    )
    words = ["prepare", str(described), "--public-text", str(text), "--said", "terms of an ontology", "--steps", "1"]
    said = CliRunner().invoke(commands, words).output
    assert f"{file} is the first adapter, of 5 public units: terms of an ontology" in said
    assert FirstAdapter.read(file).sha256 in said
    clipped = described.with_name("clipped.toml")
    clipped.write_text(described.read_text().replace(file.name, "other") + "[privacy]\nclipping_norm = 1e6\n")
    of_clipped = CliRunner().invoke(commands, ["prepare", str(clipped), "--public-text", str(text)]).output
    assert "choose a larger alpha" in of_clipped and "choose a larger alpha" not in said
    again = CliRunner().invoke(commands, words).exception
    assert isinstance(again, GrandRoundsError) and "exists" in again.what
    return file


@pytest.fixture(scope="module")
def finished(base: Path, made: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a core adapter; not to be changed."""
    folder = tmp_path_factory.mktemp("results") / "study"
    cohorts = {name: [{"patient_id": name, "text": f"{name} slept"}] for name in SITES}
    study = a_study(base, made, adapter="core")
    data = study.data.model_copy(update={"public": str(text), "public_units": 2})
    study = study.model_copy(update={"data": data})
    simulate(study, cohorts, evaluation=[{"patient_id": "e", "text": "well"}], output=folder)
    return folder


def test_what_a_study_leaves_names_its_first_adapter_and_verifies(base: Path, made: Path, finished: Path) -> None:
    named = f"sha256:{FirstAdapter.read(made).sha256}"
    for path in (REPORT, PAGE, CARD):
        said = (finished / path).read_text()
        assert named[7:] in said and "terms of an ontology" in said and str(made) not in said, path
    verdict = verify(finished)
    frozen = next(finding for finding in verdict.findings if finding.name == "frozen")
    assert verdict.outcome is Outcome.NO_PRIVACY and f"{PREPARED} has them" in frozen.detail
    assert named in frozen.detail and "terms of an ontology" in frozen.detail


def test_what_a_study_leaves_names_its_public_records_and_has_their_file(finished: Path, text: Path) -> None:
    manifest = Manifest.model_validate_json((finished / MANIFEST).read_bytes())
    named = f"sha256:{sha256(text.read_bytes())}"
    assert (manifest.study.data.public, manifest.study.data.public_units) == (named, 2)
    assert (finished / PUBLIC).read_bytes() == text.read_bytes()
    assert known(PublicRecords.of(manifest.study, finished / PUBLIC)).name == named
    changed = finished.parent / "other.jsonl"
    changed.write_bytes(text.read_bytes() + b"\n")
    with pytest.raises(StudyError, match="and not sha256:"):
        PublicRecords.of(manifest.study, changed)
    with pytest.raises(StudyError, match="by the hash"):
        PublicRecords.of(manifest.study)


def test_a_study_whose_public_records_are_too_few_or_missing_is_refused(base: Path, text: Path, tmp_path: Path) -> None:
    study = a_study(base, None)
    cohorts = {name: [{"patient_id": name, "text": f"{name} slept"}] for name in SITES}
    for public, units, reason in (
        (text, 6, "has 5 patients, and a step needs 6"),
        (tmp_path / "no.jsonl", 1, "cannot be read"),
        (tmp_path / "terms.csv", 1, "is no file of JSON lines"),
    ):
        data = study.data.model_copy(update={"public": str(public), "public_units": units})
        with pytest.raises(StudyError, match=reason):
            simulate(study.model_copy(update={"data": data}), cohorts, evaluation=[{"patient_id": "e", "text": "well"}])


def test_a_finished_core_adapter_is_everybody_s_lora(base: Path, finished: Path) -> None:
    tokens = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        before = plain(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(plain, finished / "adapter")(input_ids=tokens).logits
    model = LanguageModel.load(base, a_study(base, Path("x"), adapter="core").model.lora, seed=0)
    trained = load_file(finished / CORE)
    model.set_adapter(model.layout.flatten({name: trained[name] for name in model.trained}))
    model.set_frozen_adapter(model.frozen_layout.flatten({n: trained[n] for n, _ in model.frozen_layout.shapes}))
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(tokens), adapted)
    assert not torch.allclose(adapted, before) and all("core" not in name for name in load_file(finished / WEIGHTS))


def changed(file: Path, part: str) -> None:
    save_file({name: -t if part in name else t for name, t in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("file", "part", "claim", "reason"),
    [
        (CORE, "core", "trained", "their SHA-256"),
        (CORE, "lora_B", "frozen", "their SHA-256"),
        (WEIGHTS, "lora_B", "configuration", f"{WEIGHTS} is not what follows from {CORE}"),
        (PREPARED, "lora_A", "frozen", "and the study names"),
    ],
)
def test_a_number_of_a_core_adapter_that_was_changed_is_found(
    finished: Path, tmp_path: Path, file: str, part: str, claim: str, reason: str
) -> None:
    for path in finished.rglob("*"):
        if path.is_file() and "server" not in path.parts:
            copy = tmp_path / path.relative_to(finished)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    changed(tmp_path / file, part)
    finding = next(finding for finding in verify(tmp_path).findings if finding.name == claim)
    assert finding.status is Status.DISAGREES and reason in finding.detail
