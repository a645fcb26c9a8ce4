"""Admission: a site takes part only where the manifest is what it would run, at no more than the target."""

import pytest
from federation import small_manifest, small_study
from tiny_models import load_tiny, save_tiny_model

from grandrounds.client.admission import admit
from grandrounds.common.errors import StudyError
from grandrounds.common.identity import Identity
from grandrounds.common.model_folder import weights_sha256
from grandrounds.common.privacy.accountant import epsilon

SITE = "site-2"
IDENTITIES = {f"site-{i}": Identity.generate() for i in range(1, 6)}
NOISE_MULTIPLIER = 8.0
# Of three attempts at noise multiplier 8, everyone sampled, with delta 1e-3.
EPSILON = 0.52


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder):
    return load_tiny(folder)


@pytest.fixture(scope="module")
def fitting(folder, model):
    """What a manifest says that this site can run."""
    return {
        "dimension": model.layout.dimension,
        "model_sha256": weights_sha256(folder),
        "frozen_adapter_sha256": model.frozen_adapter_sha256,
    }


def admitted(
    folder, model, fields, *, name=SITE, identity=IDENTITIES[SITE], noise_multiplier=NOISE_MULTIPLIER, **privacy
):
    study = small_study(noise_multiplier=noise_multiplier, privacy=privacy)
    manifest = small_manifest(study, IDENTITIES, Identity.generate(), **fields)
    admit(manifest, name=name, identity=identity, model=model, model_sha256=weights_sha256(folder))
    return manifest


def test_a_manifest_that_fits_is_admitted(folder, model, fitting):
    admitted(folder, model, fitting)
    admitted(folder, model, fitting, noise_multiplier=None)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"package_version": "0.0.9"}, "the study runs version 0.0.9"),
        ({"model_sha256": "11" * 32}, "weights"),
        ({"frozen_adapter_sha256": "11" * 32}, "frozen adapter"),
        ({"dimension": 97}, "size"),
    ],
)
def test_a_manifest_of_anything_else_is_refused(folder, model, fitting, changes, complaint):
    with pytest.raises(StudyError, match=complaint):
        admitted(folder, model, fitting | changes)


@pytest.mark.parametrize(
    ("name", "identity"),
    [(SITE, IDENTITIES["site-1"]), (SITE, Identity.generate()), ("stranger", IDENTITIES[SITE])],
)
def test_a_manifest_with_another_key_for_the_site_is_refused(folder, model, fitting, name, identity):
    with pytest.raises(StudyError, match=f"another key for {name}"):
        admitted(folder, model, fitting, name=name, identity=identity)


def test_a_schedule_above_its_target_is_refused(folder, model, fitting):
    manifest = admitted(folder, model, fitting)
    spent = epsilon(manifest.schedule, delta=manifest.delta).epsilon
    admitted(folder, model, fitting, target_epsilon=spent)
    with pytest.raises(StudyError, match="above its target"):
        admitted(folder, model, fitting, target_epsilon=0.999 * spent)


def test_the_whole_schedule_counts_and_not_the_planned_rounds(folder, model, fitting):
    one_round = small_study(noise_multiplier=NOISE_MULTIPLIER, training={"max_attempts": 1})
    manifest = small_manifest(one_round, IDENTITIES, Identity.generate(), **fitting)
    target = epsilon(manifest.schedule, delta=manifest.delta).epsilon
    admit(manifest, name=SITE, identity=IDENTITIES[SITE], model=model, model_sha256=weights_sha256(folder))
    with pytest.raises(StudyError, match="above its target"):
        admitted(folder, model, fitting, target_epsilon=target)
