"""Admission: a site takes part only where the manifest is what it would run, at no more than the target."""

import shutil

import pytest
from support.study.federation import small_manifest, small_study
from support.study.tiny_models import load_tiny, save_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from grandrounds.client.site.assembly import admit
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StudyError
from grandrounds.common.model.base_folder import model_folder_sha256
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.schema import validated
from grandrounds.common.study.model_section import ModelSection
from grandrounds.common.study.study import Study

SITE = "site-2"
IDENTITIES = {f"site-{i}": Identity.generate() for i in range(1, 6)}
NOISE_MULTIPLIER = 8.0
# Of three attempts at noise multiplier 8, everyone sampled, with delta 1e-3.
EPSILON = 0.52
# What `load_tiny` puts on the model.
ADAPTER = {"adapter": "ffa", "target_modules": ["v_proj", "q_proj"], "rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder):
    return load_tiny(folder)


def fitting_to(folder, model):
    """What a manifest says that a site can run with that model."""
    return {
        "dimension": model.layout.dimension,
        "tensor_sizes": model.layout.sizes,
        "model_sha256": model_folder_sha256(folder),
        "frozen_adapter_sha256": model.frozen_adapter_sha256,
        "adapter_layout_sha256": model.adapter_layout_sha256,
    }


@pytest.fixture(scope="module")
def fitting(folder, model):
    return fitting_to(folder, model)


def adapter_study(adapter=ADAPTER, **sections):
    return validated(Study, {**small_study(**sections).model_dump(), "model": adapter})


def admitted(
    folder,
    model,
    fields,
    *,
    name=SITE,
    identity=IDENTITIES[SITE],
    noise_multiplier=NOISE_MULTIPLIER,
    adapter=ADAPTER,
    **privacy,
):
    study = adapter_study(adapter, noise_multiplier=noise_multiplier, privacy=privacy)
    manifest = small_manifest(study, IDENTITIES, Identity.generate(), **fields)
    admit(manifest, name=name, identity=identity, model=model, model_sha256=model_folder_sha256(folder))
    return manifest


def test_a_manifest_that_fits_is_admitted(folder, model, fitting):
    admitted(folder, model, fitting)
    admitted(folder, model, fitting, noise_multiplier=None)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"package_version": "0.0.9"}, "the study runs grandrounds 0.0.9 with files of"),
        ({"package_sha256": "11" * 32}, f"with files of SHA-256 {'11' * 32}, and installed here is"),
        ({"model_sha256": "11" * 32}, "base model's files"),
        ({"frozen_adapter_sha256": "11" * 32}, "frozen adapter"),
        ({"adapter_layout_sha256": "11" * 32}, "names or shapes"),
        ({"dimension": 97}, "size"),
    ],
)
def test_a_manifest_of_anything_else_is_refused(folder, model, fitting, changes, complaint):
    with pytest.raises(StudyError, match=complaint):
        admitted(folder, model, fitting | changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": 8.0}, r"q_proj is scaled by 2\.0, not by 4\.0"),
        ({"rank": 4, "alpha": 8.0}, "q_proj has rank 2, not 4"),
        ({"precision": "bfloat16"}, "held in float32, and not in bfloat16"),
        ({"adapter": "lora"}, "its kind is ffa, not lora"),
        ({"target_modules": ["v_proj", "o_proj"]}, "q_proj is none of v_proj, o_proj"),
        ({"target_modules": ["layers.0.self_attn.v_proj", "q_proj"]}, r"layers\.1\.self_attn\.v_proj is none of"),
    ],
)
def test_a_manifest_of_another_adapter_is_refused_though_its_size_and_hash_agree(
    folder, model, fitting, changes, complaint
):
    with pytest.raises(StudyError, match=complaint):
        admitted(folder, model, fitting, adapter=ADAPTER | changes)


def test_an_adapter_on_fewer_layers_than_the_study_names_is_refused(folder, fitting):
    fewer = LanguageModel.load(folder, Lora(target_modules=("v_proj",), rank=2, alpha=4.0), seed=3)
    with pytest.raises(StudyError, match="other sizes"):
        admitted(folder, fewer, fitting)


def test_what_is_compared_is_on_the_model_and_not_what_it_was_asked_for(folder, fitting):
    model = load_tiny(folder)
    layer = next(module for module in model.module.modules() if hasattr(module, "lora_A"))
    layer.scale_layer(2.0)
    with pytest.raises(StudyError, match=r"is scaled by 4\.0, not by 2\.0"):
        admitted(folder, model, fitting)


def test_many_layers_may_be_named_each_by_itself(tmp_path):
    """From 20 names on, peft shortens the list that it keeps of them."""
    config = tiny_config("llama")
    config.num_hidden_layers = 20
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    adapter = ADAPTER | {"target_modules": [f"layers.{i}.self_attn.v_proj" for i in range(20)]}
    model = LanguageModel.load(tmp_path, validated(ModelSection, adapter).lora, seed=3)
    assert len(model.module.peft_config["default"].target_modules) < 20
    admitted(tmp_path, model, fitting_to(tmp_path, model), adapter=adapter)


def test_a_folder_with_another_tokenizer_or_configuration_is_refused(folder, model, fitting, tmp_path):
    for file in ("tokenizer.json", "config.json"):
        other = shutil.copytree(folder, tmp_path / file)
        (other / file).write_text((other / file).read_text() + "\n")
        with pytest.raises(StudyError, match="base model's files"):
            admitted(other, model, fitting)


@pytest.mark.parametrize(
    ("name", "identity"),
    [(SITE, IDENTITIES["site-1"]), (SITE, Identity.generate()), ("stranger", IDENTITIES[SITE])],
)
def test_a_manifest_with_another_key_for_the_site_is_refused(folder, model, fitting, name, identity):
    with pytest.raises(StudyError, match=f"another key for {name}"):
        admitted(folder, model, fitting, name=name, identity=identity)
