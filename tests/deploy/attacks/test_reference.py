"""What attacks hold an adapter against is the base model alone, also where the study began with another adapter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.study.tiny_models import save_tiny_model

from grandrounds.common.audit.attack_scores import AttackEvidence
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.schema import known, validated
from grandrounds.common.study.artefacts import ATTACKS
from grandrounds.common.study.study import Study
from grandrounds.deploy.adapter.continuation import continued
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.attacks.scores import Scorer
from grandrounds.deploy.attacks.simulation import SimulatedAttack
from grandrounds.deploy.simulation.simulate import Result, simulate
from grandrounds.deploy.simulation.site_data import SiteData
from grandrounds.server.run.study_run import Attack

SITES = ("north", "south", "west")
MODEL: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "rank": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


def patients(place: str, count: int) -> list[dict[str, str]]:
    return [{"patient_id": f"{place}-{number}", "text": f"{place} slept {number} hours"} for number in range(count)]


def ran(base: Path, folder: Path, of: str, attacks: list[SimulatedAttack] | None = None, **model: Any) -> Result:
    """A study of patients ``of`` a place, whose adapter learns much; ``attacks`` gets what attacks it, if it is to."""
    fields = {
        "model": {"name": str(base), "adapter": "lora", **MODEL, **model},
        "data": {"max_tokens": 24, "evaluation": "synthetic"},
        "privacy": {"target_epsilon": 50.0, "sampling_probability": 0.5},
        "training": {"rounds": 1, "learning_rate": 1.0},
        "sites": [{"name": name, "nominal_units": 8, "sensitivity": "synthetic"} for name in SITES],
    }
    evaluation = folder.with_suffix(".jsonl")
    evaluation.write_text("".join(f"{json.dumps(each)}\n" for each in patients("elsewhere", 24)), encoding="utf-8")

    def attack(study: Study, data: SiteData) -> Attack:
        attack = SimulatedAttack.of(study, data, evaluation, tell=lambda doing: None)
        known(attacks).append(attack)
        return lambda model, adapter, manifest: attack.evidence(model, adapter, manifest).to_json()

    cohorts = {name: patients(f"{of} {name}", 8) for name in SITES}
    attacking = None if attacks is None else attack
    return simulate(validated(Study, fields), cohorts, evaluation=evaluation, output=folder, attack=attacking)


def test_of_a_second_stage_it_is_not_the_adapter_in_which_the_first_one_s_patients_are(
    base: Path, tmp_path: Path
) -> None:
    attacks: list[SimulatedAttack] = []
    earlier = ran(base, tmp_path / "earlier", "spring")
    first = continued(earlier.manifest.study, FinishedAdapter.read(known(earlier.folder)))
    (tmp_path / "first.safetensors").write_bytes(first.data)
    later = ran(base, tmp_path / "later", "autumn", attacks, first_adapter=str(tmp_path / "first.safetensors"))
    assert later.manifest.study.model.first_study == earlier.manifest.sha256
    found = AttackEvidence.parse((tmp_path / "later" / ATTACKS).read_bytes())
    alone = LanguageModel.load(base, later.manifest.study.model.lora, seed=9)
    nothing = alone.get_adapter()
    for scores, read in ((found.members, attacks[0].members), (found.others, attacks[0].others)):
        for adapter, is_base in ((nothing, True), (earlier.adapter, False)):
            expected = [np.log(alone.perplexity(list(patient), adapter).whole) for patient in read]
            assert np.allclose(scores.base, expected, rtol=1e-4) is is_base


LORAS = {
    "ffa": Lora(target_modules=("q_proj", "v_proj"), rank=2),
    "of an embedding": Lora(target_modules=("q_proj", "embed_tokens"), rank=2, kind="lora"),
    "lora": Lora(target_modules=("q_proj", "v_proj"), rank=2, kind="lora"),
    "dora": Lora(target_modules=("q_proj", "v_proj"), rank=2, dora=True),
    "core": Lora(target_modules=("q_proj", "v_proj"), rank=2, kind="core"),
}


@pytest.mark.parametrize("kind", LORAS)
def test_whatever_adapter_is_on_a_model_its_base_s_numbers_say_what_the_base_model_says(base: Path, kind: str) -> None:
    import torch

    model = LanguageModel.load(base, LORAS[kind], seed=1)
    rng = np.random.default_rng(2)
    frozen = rng.normal(0, 0.3, model.frozen_layout.dimension).astype(np.float32)
    model.set_frozen_adapter(frozen)
    trained = rng.normal(0, 0.3, model.layout.dimension).astype(np.float32)
    scorer = Scorer.against_base(model, trained, clipping_norm=1.0)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        model.set_adapter(trained)
        adapted = model.logits(tokens)
        model.set_adapter(scorer.before)
        found = model.logits(tokens)
        with model.module.disable_adapter():
            expected = model.logits(tokens)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted, expected, rtol=1e-2, atol=1e-2), "or this would show nothing"
    if kind == "lora":  # what is trained of A says nothing by itself, and gives B's gradients their direction
        before, after = (model.layout.unflatten(vector) for vector in (scorer.before, trained))
        assert all(np.array_equal(before[name], after[name]) for name in before if ".lora_A." in name)
