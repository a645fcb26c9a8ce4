"""A study: what people may write, what follows from it, and the manifest whose hash stands for all of it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grandrounds.common.errors import PrivacyError, StudyError
from grandrounds.common.identity import canonical_json, sha256
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.study import (
    MANIFEST_LABEL,
    Manifest,
    Study,
    complete_study,
    default_delta,
    read_study,
    validated,
)

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "manifest.json").read_text(encoding="utf-8"))
SITES = [{"name": f"site-{i}", "nominal_units": 20} for i in range(1, 6)]
KEYS = {f"site-{i}": f"{i:02x}" * 32 for i in range(1, 6)}


def study(**sections: Any) -> Study:
    return validated(Study, {"sites": SITES, **sections})


def complete(**privacy: Any) -> dict[str, Any]:
    """The fields of a study in which nothing is left open, under local trust, where every field can be varied."""
    return {
        "privacy": {
            "trust": "local",
            "delta": 1e-3,
            "target_epsilon": 2.0,
            "noise_multiplier": 4.0,
            "sampling_probability": 0.5,
            **privacy,
        },
        "training": {"max_attempts": 24},
        "secagg": {"threshold": 4, "modulus_bits": 32},
        "sites": SITES,
    }


def manifest_fields(study: dict[str, Any], **changes: Any) -> dict[str, Any]:
    names = [site["name"] for site in study["sites"]]
    fields = {
        "study_id": "ab" * 32,
        "study": study,
        "site_keys": {name: KEYS[name] for name in names},
        "server_key": "ff" * 32,
        "dimension": 96,
        "model_sha256": "cd" * 32,
        "frozen_adapter_sha256": "ef" * 32,
        "package_version": "0.1.0",
    }
    return fields | changes


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def replaced(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    """A copy of nested dicts and lists with another value at ``path``."""
    if not path:
        return leaf
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], leaf)
    return copy


def others(leaf: Any) -> list[Any]:
    """Values near one, of which some field of a study accepts at least one."""
    words = ["local", "distributed", "lora", "public", "record", "sgd", "adam", "q_proj", "0.1.1", "11" * 32]
    match leaf:
        case bool():
            return [not leaf]
        case int() | float():
            return [value for value in (leaf + 1, leaf - 1, leaf / 2, 16) if value != leaf]
        case None:
            return []
    return [word for word in words if word != leaf]


def test_the_manifest_s_hash_is_the_known_one() -> None:
    manifest = validated(Manifest, VECTOR["manifest"])
    assert canonical_json(manifest.model_dump(mode="json")).decode() == VECTOR["canonical"]
    assert manifest.sha256 == VECTOR["sha256"] == sha256(MANIFEST_LABEL + VECTOR["canonical"].encode())


def test_a_manifest_read_back_from_its_canonical_form_is_the_same() -> None:
    manifest = validated(Manifest, VECTOR["manifest"])
    assert validated(Manifest, json.loads(VECTOR["canonical"])) == manifest


def test_any_changed_field_changes_the_hash() -> None:
    whole = validated(Manifest, manifest_fields(complete())).model_dump(mode="json")
    hashes = {validated(Manifest, whole).sha256}
    # These cannot change alone: a site's name is also its key's, and without noise there is no target.
    tied = {("study", "privacy", "noise"), *(("study", "sites", i, "name") for i in range(5))}
    paths = [path for path in leaves(whole) if path not in tied]
    for path in paths:
        accepted = []
        for leaf in others(_at(whole, path)):
            try:
                accepted.append(validated(Manifest, replaced(whole, path, leaf)).sha256)
            except (StudyError, PrivacyError):
                continue
        assert accepted, f"no other value of {path} was accepted"
        assert not hashes & set(accepted), path
        hashes |= set(accepted)
    assert len(paths) > 40


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_sites_in_another_order_are_another_manifest() -> None:
    fields = manifest_fields(complete())
    turned = replaced(fields, ("study", "sites"), SITES[::-1])
    assert validated(Manifest, fields).sha256 != validated(Manifest, turned).sha256


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"rounds": 3}, "rounds: no such field"),
        ({"privacy": {"epsilon": 3}}, "privacy.epsilon: no such field"),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 1, "size": 2}]}, "sites.5.size: no such field"),
        ({"privacy": {"sampling_probability": 1.5}}, "privacy.sampling_probability = 1.5: "),
        ({"privacy": {"sampling_probability": 0}}, "privacy.sampling_probability = 0: "),
        ({"privacy": {"clipping_norm": -1}}, "privacy.clipping_norm = -1: "),
        ({"privacy": {"clipping_norm": math.inf}}, "privacy.clipping_norm = inf: Input should be a finite number"),
        ({"privacy": {"delta": math.nan}}, "privacy.delta = nan: Input should be a finite number"),
        ({"privacy": {"target_epsilon": math.nan}}, "privacy.target_epsilon = nan: Input should be a finite number"),
        (
            {"privacy": {"noise_multiplier": math.inf}},
            "privacy.noise_multiplier = inf: Input should be a finite number",
        ),
        ({"privacy": {"trust": "blind"}}, "privacy.trust = 'blind': "),
        ({"privacy": {"corrupt_sites": 0}}, "privacy.corrupt_sites = 0: "),
        ({"training": {"learning_rate": math.inf}}, "training.learning_rate = inf: Input should be a finite number"),
        ({"training": {"rounds": 0}}, "training.rounds = 0: "),
        ({"training": {"rounds": 2.5}}, "training.rounds = 2.5: "),
        ({"training": {"beta1": 1}}, "training.beta1 = 1: "),
        ({"model": {"rank": 0}}, "model.rank = 0: "),
        ({"model": {"target_modules": []}}, "model.target_modules = "),
        ({"data": {"max_tokens": 4}}, "data.max_tokens = 4: "),
        ({"secagg": {"modulus_bits": 24}}, "secagg.modulus_bits = 24: "),
        ({"secagg": {"update_range": 0}}, "secagg.update_range = 0: "),
        ({"sites": SITES[:2]}, "sites = "),
        ({"sites": [*SITES, SITES[0]]}, "occurs twice"),
        ({"sites": [*SITES, {"name": "server", "nominal_units": 1}]}, "cannot be called 'server'"),
        ({"sites": [*SITES, {"name": "St. Mary", "nominal_units": 1}]}, "sites.5.name = 'St. Mary': "),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 0}]}, "sites.5.nominal_units = 0: "),
        ({"privacy": {"sites_per_patient": 6}}, "sites_per_patient: above the number of sites"),
        ({"training": {"local_steps": 2}}, "training.local_steps: "),
        ({"secagg": {"modulus_bits": 16}}, "distributed trust sums noisy integers"),
        ({"training": {"rounds": 9, "max_attempts": 8}}, "max_attempts: below the number of rounds"),
        ({"secagg": {"threshold": 6}}, "secagg.threshold: 6 sites must answer, but there are 5"),
        ({"secagg": {"threshold": 3}}, "secagg.threshold: 3 of 5 sites is too low where 1 may be corrupt"),
        ({"privacy": {"corrupt_sites": 3}}, "secagg.threshold: 4 of 5 sites is too low where 3 may be corrupt"),
        ({"privacy": {"delta": 0.011}}, "privacy.delta: 0.011 is above 1/100"),
        ({"privacy": {"noise": False, "target_epsilon": 4}}, "privacy.noise: off"),
        ({"privacy": {"noise": False, "noise_multiplier": 1}}, "privacy.noise: off"),
    ],
)
def test_what_a_study_cannot_be_is_refused_by_name_and_value(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StudyError) as refusal:
        study(**sections)
    assert complaint in refusal.value.what


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(StudyError, match=r"model\.rank = 0: .*; training\.rounds = 0: .*; typo: no such field"):
        study(model={"rank": 0}, training={"rounds": 0}, typo=1)


def test_the_largest_delta_is_one_over_all_nominal_units() -> None:
    assert study(privacy={"delta": 0.01}).privacy.delta == 0.01


def test_what_a_study_leaves_open_follows_from_it() -> None:
    filled = complete_study(study(training={"rounds": 20}, privacy={"noise_multiplier": 4, "sampling_probability": 1}))
    assert filled.privacy.delta == default_delta(100) == 1e-3
    assert filled.training.max_attempts == 24
    assert filled.secagg.threshold == 4
    assert filled.secagg.modulus_bits == 32
    assert complete_study(filled) == filled
    local = complete_study(study(privacy={"trust": "local", "noise": False}))
    assert local.secagg.modulus_bits == 16
    assert local.privacy.noise_multiplier is None
    assert local.privacy.target_epsilon is None


def test_the_noise_that_a_target_needs_keeps_every_attempt_within_it() -> None:
    filled = complete_study(
        study(training={"rounds": 5, "max_attempts": 12}, privacy={"target_epsilon": 3, "sampling_probability": 1})
    )
    manifest = validated(Manifest, manifest_fields(filled.model_dump()))
    assert manifest.schedule is not None
    assert manifest.schedule.count == 12
    assert 0.99 * 3 < epsilon(manifest.schedule, delta=manifest.delta).epsilon <= 3


def test_the_target_of_a_given_noise_is_what_it_costs_rounded_up() -> None:
    filled = complete_study(study(privacy={"noise_multiplier": 8, "sampling_probability": 1}))
    manifest = validated(Manifest, manifest_fields(filled.model_dump()))
    assert manifest.schedule is not None
    spent = epsilon(manifest.schedule, delta=manifest.delta).epsilon
    assert filled.privacy.target_epsilon is not None
    assert spent <= filled.privacy.target_epsilon < spent + 1e-4


def test_a_given_noise_above_the_given_target_is_refused() -> None:
    with pytest.raises(StudyError, match=r"noise_multiplier = 8 costs ε = .* above privacy\.target_epsilon = 1"):
        complete_study(study(privacy={"noise_multiplier": 8, "target_epsilon": 1, "sampling_probability": 1}))


THREE = {"sites": SITES[:3], "privacy": {"corrupt_sites": 2}}


def test_fewer_than_two_honest_shares_are_refused_under_distributed_trust_alone() -> None:
    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        complete_study(study(**THREE))
    without_noise = {**THREE, "privacy": {"corrupt_sites": 2, "noise": False}}
    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        complete_study(study(**without_noise))
    local = complete_study(study(**{**THREE, "privacy": {"corrupt_sites": 2, "noise": False, "trust": "local"}}))
    assert validated(Manifest, manifest_fields(local.model_dump())).honest_shares == 1
    whole = complete(trust="distributed", corrupt_sites=2) | {"sites": SITES[:3]}
    whole["secagg"] = {"threshold": 3, "modulus_bits": 32}
    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        validated(Manifest, manifest_fields(whole))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("privacy", "delta"),
        ("privacy", "target_epsilon"),
        ("privacy", "noise_multiplier"),
        ("training", "max_attempts"),
        ("secagg", "threshold"),
        ("secagg", "modulus_bits"),
    ],
)
def test_an_incomplete_manifest_is_refused(section: str, field: str) -> None:
    incomplete = replaced(complete(), (section, field), None)
    with pytest.raises(StudyError, match="incomplete; a manifest states every parameter"):
        validated(Manifest, manifest_fields(incomplete))


@pytest.mark.parametrize(
    "changes",
    [
        {"site_keys": KEYS | {"site-6": "06" * 32}},
        {"site_keys": {name: KEYS[name] for name in list(KEYS)[1:]}},
        {"site_keys": KEYS | {"site-2": KEYS["site-1"]}},
        {"server_key": KEYS["site-1"]},
        {"server_key": "FF" * 32},
        {"study_id": "ab"},
        {"dimension": 0},
        {"signature": "ab"},
    ],
)
def test_a_manifest_with_keys_or_fields_that_do_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        validated(Manifest, manifest_fields(complete(), **changes))


def test_a_sum_that_could_wrap_is_refused() -> None:
    wide = manifest_fields(complete(trust="distributed", noise_multiplier=100.0), dimension=10**9)
    with pytest.raises(StudyError, match=r"a sum could reach .* and wrap at 2\*\*31"):
        validated(Manifest, wide)


@pytest.mark.parametrize("noise_multiplier", [0.1, 1000])
def test_noise_that_the_sampler_cannot_draw_exactly_is_refused_before_anything_runs(noise_multiplier: float) -> None:
    dimension = 96 if noise_multiplier < 1 else 2**32
    with pytest.raises(PrivacyError, match="a site's noise would have a standard deviation of"):
        validated(Manifest, manifest_fields(complete(noise_multiplier=noise_multiplier), dimension=dimension))


def test_distributed_noise_has_h_shares_and_local_noise_is_whole() -> None:
    local = validated(Manifest, manifest_fields(complete()))
    shared = validated(Manifest, manifest_fields(complete(trust="distributed")))
    assert local.noise_stddev == math.ceil(4 * local.lattice.sensitivity)
    assert shared.noise_stddev == math.ceil(4 * shared.lattice.sensitivity / math.sqrt(3))
    assert local.mechanism().noise_stddev == local.noise_stddev


def test_a_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    sites = "".join(f'[[sites]]\nname = "{name}"\nnominal_units = 20\n' for name in ("a", "b", "c"))
    path.write_text(f"[training]\nrounds = 7\n{sites}")
    assert read_study(path).training.rounds == 7
    faults = {
        f"[training]\nround = 7\n{sites}": "training.round: no such field",
        f"[privacy]\ndelta = nan\n{sites}": "privacy.delta = nan",
        "[training\n": "at line 1",
    }
    for text, complaint in faults.items():
        path.write_text(text)
        with pytest.raises(StudyError, match=complaint.replace(".", r"\.")):
            read_study(path)
    path.write_bytes(b"\xff")
    with pytest.raises(StudyError, match="cannot be read"):
        read_study(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_study(tmp_path / "missing.toml")


@pytest.mark.parametrize("total", [1, 3, 7, 10, 99, 100, 120, 12345, 10**9])
def test_the_default_delta_is_at_most_a_tenth_of_one_over_all_units(total: int) -> None:
    assert 0.5 / (10 * total) < default_delta(total) <= 1 / (10 * total) * (1 + 1e-12)
