"""The manifest: its hash stands for every field, and what cannot be run is refused."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from support.places import VECTORS

from grandrounds.common.crypto.identity import canonical_json, sha256
from grandrounds.common.errors import PrivacyError, StudyError
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.mechanism import Lattice
from grandrounds.common.schema import known, validated
from grandrounds.common.study.manifest import MANIFEST_LABEL, Manifest
from grandrounds.common.study.study import Study

VECTOR = json.loads((VECTORS / "manifest.json").read_text(encoding="utf-8"))
DESCRIPTION = {
    "records": "letters",
    "residency": "Oslo",
    "sensitivity": "synthetic",
    "sha256": "12" * 32,
    "largest_epsilon": 4.0,
    "budget_epsilon": 8.0,
    "minimised": ["dates shifted"],
}
ABOUT = {
    "title": "Letters",
    "purpose": "letters that write themselves",
    "institutions": ["Oslo", "Bergen"],
    "contact": "dpo@example.org",
    "dated": "2026-11-30",
    "begins": "2026-12-01",
    "ends": "2027-03-31",
    "audit": f"sha256:{'ad' * 32}",
}
SITES = [{"name": f"site-{i}", "nominal_units": 20, "max_units": 25, **DESCRIPTION} for i in range(1, 6)]
KEYS = {f"site-{i}": f"{i:02x}" * 32 for i in range(1, 6)}


def complete(**privacy: Any) -> dict[str, Any]:
    """The fields of a study in which nothing is left open, under local trust, where every field can be varied."""
    return {
        "about": ABOUT,
        "model": {
            "license": "mit",
            "first_adapter": f"sha256:{'ba' * 32}",
            "first_text": "terms",
            "first_study": "bc" * 32,
            "layers": [2, 4],
            "rank_pattern": {"v_proj": 8},
            "alpha_pattern": {"v_proj": 2.0},
        },
        "privacy": {
            "trust": "local",
            "delta": 1e-3,
            "target_epsilon": 2.0,
            "noise_multiplier": 4.0,
            "sampling_probability": 0.5,
            **privacy,
        },
        "data": {"evaluation": "synthetic", "public": f"sha256:{'bd' * 32}", "public_units": 3},
        "training": {
            "learning_rate": 0.05,
            "max_attempts": 24,
            "answer_after_s": 60.0,
            "physical_batch": 4,
            "averaging": "mean",
            "averaged_rounds": 2,
        },
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
        "tensor_sizes": [32, 64],
        "model_sha256": "cd" * 32,
        "frozen_adapter_sha256": "ef" * 32,
        "adapter_layout_sha256": "fe" * 32,
        "adapter_sha256": "fd" * 32,
        "package_version": "0.1.0",
        "package_sha256": "98" * 32,
        "app_sha256": "76" * 32,
        "connection_sha256": "54" * 32,
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
    words = [
        "local",
        "distributed",
        "lora",
        "public",
        "record",
        "sgd",
        "adam",
        "q_proj",
        "nf4",
        "ema",
        "cosine",
        "auto",
        "0.1.1",
    ]
    words += [f"sha256:{'22' * 32}", "11" * 32, "2027-01-31", "2026-12-31", "2026-11-29"]
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
    # These cannot change alone: a site's name is also its key's, tensors come to the dimension, without noise there is
    # no target, and under local trust no noise that a step could be corrected by.
    tied = {("study", "privacy", "noise"), *(("study", "sites", i, "name") for i in range(5))}
    tied |= {("dimension",), ("tensor_sizes", 0), ("tensor_sizes", 1), ("study", "training", "noise_correction")}
    tied |= {("study", "model", "a_init")}  # none is drawn beside a first adapter
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
    ("section", "field"),
    [
        ("privacy", "delta"),
        ("privacy", "target_epsilon"),
        ("privacy", "noise_multiplier"),
        ("training", "learning_rate"),
        ("training", "max_attempts"),
        ("secagg", "threshold"),
        ("secagg", "modulus_bits"),
        ("data", "evaluation"),
        ("training", "answer_after_s"),
    ],
)
def test_an_incomplete_manifest_is_refused(section: str, field: str) -> None:
    incomplete = replaced(complete(), (section, field), None)
    with pytest.raises(StudyError, match=f"a manifest states every parameter, and {section}.{field} is open"):
        validated(Manifest, manifest_fields(incomplete))


def test_a_bound_on_a_cohort_is_stated_and_not_below_the_nominal_units() -> None:
    with pytest.raises(StudyError, match=r"sites.site-2.max_units is open"):
        validated(Manifest, manifest_fields(replaced(complete(), ("sites", 1, "max_units"), None)))
    with pytest.raises(StudyError, match="max_units: 19 is below the 20 nominal units"):
        validated(Manifest, manifest_fields(replaced(complete(), ("sites", 1, "max_units"), 19)))


@pytest.mark.parametrize(("table", "field"), [("model", "first_adapter"), ("data", "public")])
def test_a_manifest_names_files_that_it_is_of_by_their_hash(table: str, field: str) -> None:
    with pytest.raises(StudyError, match=rf"study\.{table}\.{field}: a manifest names it by its hash"):
        validated(Manifest, manifest_fields(replaced(complete(), (table, field), "a-file")))


def test_public_units_are_counted_in_the_room_that_a_sum_has_and_in_nothing_that_is_claimed() -> None:
    privacy = {"trust": "distributed", "corrupt_sites": 1}
    mixed = validated(Manifest, manifest_fields(complete(**privacy)))
    without = validated(Manifest, manifest_fields(complete(**privacy) | {"data": {"evaluation": "synthetic"}}))
    sites = len(mixed.study.sites)
    assert mixed.largest_sum - without.largest_sum == pytest.approx(3 * sites * mixed.lattice.sensitivity)
    for claimed in ("schedule", "lattice", "honest_shares", "delta"):
        assert getattr(mixed, claimed) == getattr(without, claimed), claimed
    assert mixed.site_noise(1) == without.site_noise(1)
    for site in mixed.study.sites:
        assert mixed.draw_cap(site.name) == without.draw_cap(site.name)
        assert mixed.step_units([site.name]) == without.step_units([site.name]) + 3
    with pytest.raises(StudyError, match="could reach"):
        data = {"public": f"sha256:{'bd' * 32}", "public_units": 100_000, "evaluation": "synthetic"}
        validated(
            Manifest, manifest_fields(complete(**privacy) | {"data": data}, dimension=2**24, tensor_sizes=[2**24])
        )


def test_public_records_and_how_many_enter_a_step_are_given_together() -> None:
    for data in ({"public": "notes.jsonl"}, {"public_units": 3}):
        with pytest.raises(StudyError, match=r"data\.public_units: public records and how many"):
            validated(Study, {"data": data, "sites": SITES})


def test_an_instant_after_the_deadline_is_refused() -> None:
    late = replaced(complete(), ("training", "answer_after_s"), 600.0)
    with pytest.raises(StudyError, match=r"^study\.training\.answer_after_s: 600 s, .* every site would be too late$"):
        validated(Manifest, manifest_fields(late))


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
        {"tensor_sizes": [32, 63]},
        {"tensor_sizes": [97, -1]},
        {"signature": "ab"},
    ],
)
def test_a_manifest_with_keys_or_fields_that_do_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        validated(Manifest, manifest_fields(complete(), **changes))


def test_a_sum_that_could_wrap_is_refused() -> None:
    wide = manifest_fields(complete(trust="distributed", noise_multiplier=100.0), dimension=10**9, tensor_sizes=[10**9])
    with pytest.raises(StudyError, match=r"a sum could reach .* and wrap at 2\*\*31"):
        validated(Manifest, wide)


def test_noise_that_the_sampler_cannot_draw_exactly_is_refused_before_anything_runs() -> None:
    with pytest.raises(PrivacyError, match="a site's noise would have a standard deviation of"):
        validated(Manifest, manifest_fields(complete(noise_multiplier=1000), dimension=2**32, tensor_sizes=[2**32]))
    with pytest.raises(PrivacyError, match="the noise multiplier is 1e-05"):
        validated(Manifest, manifest_fields(complete(noise_multiplier=1e-5), dimension=96))


@pytest.mark.parametrize("trust", ["local", "distributed"])
@pytest.mark.parametrize("noise_multiplier", [0.1, 0.7, 4.0])
def test_the_lattice_is_as_fine_as_the_narrowest_layer_of_noise_needs_and_no_finer(
    trust: str, noise_multiplier: float
) -> None:
    whole = complete(trust=trust, noise_multiplier=noise_multiplier)
    manifest = validated(Manifest, manifest_fields(whole, dimension=9, tensor_sizes=[9]))
    noise, coarse = manifest.site_noise(1), Lattice(dimension=9, clipping_norm=manifest.lattice.clipping_norm)
    assert noise is not None
    least = min(noise.stddev, *(layer.stddev for layer in noise.layers), 1 << 30)
    assert least >= 64
    assert manifest.lattice.scale == coarse.scale or least <= 2 * 64 + 2


def test_distributed_noise_has_h_shares_and_local_noise_is_whole() -> None:
    local = validated(Manifest, manifest_fields(complete()))
    shared = validated(Manifest, manifest_fields(complete(trust="distributed")))
    assert local.noise_stddev(1) == math.ceil(4 * local.lattice.sensitivity)
    whole, sites = 4 * shared.lattice.sensitivity, len(shared.study.sites)
    noise = known(shared.site_noise(1))
    assert noise.stddev == math.ceil(whole / math.sqrt(sites - 1))
    assert whole / math.sqrt(3) <= shared.noise_stddev(1) < 1.01 * whole / math.sqrt(3)
    assert local.mechanism({}, attempt=1).noise_stddev == local.noise_stddev(1)
    layer_keys = {layer.level: bytes(32) for layer in noise.layers}
    assert shared.mechanism(layer_keys, attempt=1).noise_stddev == pytest.approx(shared.noise_stddev(1))


def test_every_stage_of_noise_is_as_wide_as_is_proved_and_has_room_in_a_sum() -> None:
    constant = complete(trust="distributed", noise_multiplier=0.7)
    staged = complete(trust="distributed", noise_multiplier=0.7, noise_stages=[[3, 0.25], [9, 4.0]])
    before, manifest = (
        validated(Manifest, manifest_fields(whole, dimension=9, tensor_sizes=[9])) for whole in (constant, staged)
    )
    assert manifest.sha256 != before.sha256
    for attempt, factor in ((1, 1), (2, 1), (3, 0.25), (8, 0.25), (9, 4), (24, 4)):
        noise, claimed = known(manifest.site_noise(attempt)), 0.7 * factor * manifest.lattice.sensitivity
        assert min(noise.stddev, *(layer.stddev for layer in noise.layers), 1 << 30) >= 64
        assert claimed <= math.sqrt(3) * manifest.noise_stddev(attempt) < 1.05 * claimed, "of three honest shares"
        keys = {layer.level: bytes(32) for layer in noise.layers}
        added = manifest.mechanism(keys, attempt=attempt).noise_stddev
        assert added == pytest.approx(manifest.noise_stddev(attempt))
        assert manifest.attempt_parameters(attempt).noise_layers == noise.layers
        assert manifest.attempt_parameters(attempt).noise_levels == manifest.secagg_parameters.noise_levels
    widest = 10 * manifest.noise_stddev(9) * math.sqrt(5)
    assert manifest.largest_sum > widest > 10 * manifest.noise_stddev(1) * math.sqrt(5)
    with pytest.raises(PrivacyError, match=r"the noise multiplier is 0\.025"):
        validated(Manifest, manifest_fields(staged | {"privacy": staged["privacy"] | {"noise_multiplier": 0.1}}))


def test_a_manifest_with_fewer_than_two_honest_shares_is_refused_under_distributed_trust_alone() -> None:
    def three(trust: str) -> dict[str, Any]:
        whole = complete(trust=trust, corrupt_sites=2)
        return manifest_fields(whole | {"sites": SITES[:3], "secagg": {"threshold": 3, "modulus_bits": 32}})

    assert validated(Manifest, three("local")).honest_shares == 1
    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        validated(Manifest, three("distributed"))


def test_the_schedule_covers_every_local_step_of_every_attempt() -> None:
    whole = complete(sites_per_patient=2)
    whole["training"] |= {"local_steps": 3}
    manifest = validated(Manifest, manifest_fields(whole))
    event = SampledGaussianRelease(sampling_probability=0.5, noise_multiplier=4, trust="local", sites_per_patient=2)
    cut = 1e-3 * 1e-3 / (24 * 3 * 2)  # a thousandth of δ over all releases at both sites
    assert manifest.schedule == Schedule(event=event, count=24 * 3, cut_probability=cut)


def test_a_manifest_without_noise_has_no_schedule_and_no_noise() -> None:
    whole = complete(noise=False, target_epsilon=None, noise_multiplier=None)
    manifest = validated(Manifest, manifest_fields(whole))
    assert manifest.schedule is None
    assert manifest.mechanism({}, attempt=1).noise_stddev == manifest.noise_stddev(1) == 0
