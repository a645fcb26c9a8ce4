"""A study: what people may write, and what follows from it."""

import math
from pathlib import Path
from typing import Any

import pytest

from grandrounds.common.errors import PrivacyError, StudyError
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.schema import read_settings, validated
from grandrounds.common.study.completion import complete_study, default_delta, schedule_of
from grandrounds.common.study.study import Study, read_study
from grandrounds.common.study.training import TrainingSection

SITES = [{"name": f"site-{i}", "nominal_units": 20} for i in range(1, 6)]


def study(**sections: Any) -> Study:
    return validated(Study, {"sites": SITES, **sections})


def cost(study: Study) -> float:
    """ε of a complete study's whole schedule."""
    attempts, noise, delta = study.training.max_attempts, study.privacy.noise_multiplier, study.privacy.delta
    assert attempts is not None
    assert noise is not None
    assert delta is not None
    schedule = schedule_of(
        study.privacy,
        local_steps=study.training.local_steps,
        attempts=attempts,
        delta=delta,
        noise_multiplier=noise,
    )
    return epsilon(schedule, delta=delta).epsilon


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"rounds": 3}, "rounds: no such field"),
        ({"privacy": {"epsilon": 3}}, "privacy.epsilon: no such field"),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 1, "size": 2}]}, "sites.5.size: no such field"),
        ({"privacy": {"sampling_probability": 1.5}}, "privacy.sampling_probability = 1.5: "),
        ({"privacy": {"sampling_probability": 0}}, "privacy.sampling_probability = 0: "),
        ({"privacy": {"clipping_norm": -1}}, "privacy.clipping_norm = -1: "),
        ({"privacy": {"clipping_norm": math.inf}}, "privacy.clipping_norm = inf: needs a finite number"),
        ({"privacy": {"delta": math.nan}}, "privacy.delta = nan: needs a finite number"),
        ({"privacy": {"target_epsilon": math.nan}}, "privacy.target_epsilon = nan: needs a finite number"),
        (
            {"privacy": {"noise_multiplier": math.inf}},
            "privacy.noise_multiplier = inf: needs a finite number",
        ),
        ({"privacy": {"trust": "blind"}}, 'privacy.trust = "blind": '),
        ({"privacy": {"corrupt_sites": 0}}, "privacy.corrupt_sites = 0: "),
        ({"training": {"learning_rate": math.inf}}, "training.learning_rate = inf: needs a finite number"),
        ({"training": {"rounds": 0}}, "training.rounds = 0: "),
        ({"training": {"rounds": 2.5}}, "training.rounds = 2.5: "),
        ({"training": {"beta1": 1}}, "training.beta1 = 1: "),
        ({"model": {"rank": 0}}, "model.rank = 0: "),
        ({"model": {"target_modules": []}}, "model.target_modules = "),
        ({"model": {"layers": [0, 2_000_000_000]}}, "model.layers.1 = 2000000000: needs 9,999 or less"),
        ({"model": {"target_modules": "(.*q_proj"}}, "it is no regular expression"),
        ({"model": {"target_modules": ".{4294967294}"}}, "braces count what the library would write out in memory"),
        ({"model": {"target_modules": "(?:.*q_proj){e<=30}"}}, "braces count"),
        ({"model": {"target_modules": "[[:foo:]]"}}, "it is no regular expression"),
        ({"model": {"target_modules": "[[:alpha:]]+"}}, "it is no regular expression"),
        ({"data": {"max_tokens": 4}}, "data.max_tokens = 4: "),
        ({"secagg": {"modulus_bits": 24}}, "secagg.modulus_bits = 24: "),
        ({"secagg": {"update_range": 0}}, "secagg.update_range = 0: "),
        ({"sites": SITES[:2]}, "sites = "),
        ({"sites": [*SITES, SITES[0]]}, "occurs twice"),
        ({"sites": [*SITES, {"name": "server", "nominal_units": 1}]}, "cannot be called 'server'"),
        ({"sites": [*SITES, {"name": "St. Mary", "nominal_units": 1}]}, 'sites.5.name = "St. Mary": '),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 0}]}, "sites.5.nominal_units = 0: "),
        (
            {"sites": [*SITES, {"name": "six", "nominal_units": 1, "records": "letters\nof a ward"}]},
            "sites.5.records = ",
        ),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 1, "residency": "\u202eOslo"}]}, "sites.5.residency = "),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 1, "records": "w" * 201}]}, "sites.5.records = "),
        ({"sites": [*SITES, {"name": "six", "nominal_units": 1, "sensitivity": "none"}]}, "sites.5.sensitivity = "),
        ({"about": {"title": "Letters\nand more"}}, "about.title = "),
        ({"about": {"institutions": ["Oslo", " "]}}, "about.institutions.1 = "),
        ({"about": {"dated": "30.11.2026"}}, 'about.dated = "30.11.2026": this is no day; write it as 2026-11-30'),
        ({"about": {"ends": "2026-W48-1"}}, 'about.ends = "2026-W48-1": this is no day'),
        ({"about": {"begins": "2026-12-02", "ends": "2026-12-01"}}, "ends: 2026-12-01 is before it begins, 2026-12-02"),
        ({"privacy": {"sites_per_patient": 6}}, "sites_per_patient: above the number of sites"),
        ({"training": {"local_steps": 2}}, "training.local_steps: "),
        ({"secagg": {"modulus_bits": 16}}, "distributed trust sums noisy integers"),
        (
            {"privacy": {"noise_stages": [[3, 0.5], [3, 0.4]]}},
            "privacy.noise_stages: they begin with the attempts [3, 3]",
        ),
        ({"privacy": {"noise_stages": [[1, 0.5]]}}, "privacy.noise_stages.0.0 = 1: "),
        ({"privacy": {"noise_stages": [[2, 0.2]]}}, "privacy.noise_stages.0.1 = 0.2: "),
        (
            {"privacy": {"noise_stages": [[6, 0.5]]}, "training": {"max_attempts": 5}},
            "privacy.noise_stages: one begins with attempt 6, and there are 5 (training.max_attempts)",
        ),
        ({"privacy": {"noise_stages": [[3, 0.5]], "noise": False}}, "privacy.noise_stages: stages of noise, and"),
        ({"privacy": {"noise_stages": [[3, 0.5]], "trust": "local"}}, "privacy.noise_stages: under local trust"),
        ({"training": {"optimizer": "sgd", "noise_correction": "tensor"}}, "training.noise_correction: sgd has no"),
        (
            {"privacy": {"trust": "local"}, "training": {"noise_correction": "coordinate"}},
            "training.noise_correction: under local trust",
        ),
        (
            {"training": {"learning_rate": 2.0, "weight_decay": 0.5}},
            "training.weight_decay: 0.5 at a learning rate of 2",
        ),
        ({"training": {"rounds": 3, "warmup_rounds": 3}}, "training.warmup_rounds: 3 of 3 rounds"),
        ({"training": {"averaging": "mean"}}, "training.averaged_rounds: 1 of 4 rounds, averaging mean"),
        ({"training": {"averaged_rounds": 2}}, "training.averaged_rounds: 2 of 4 rounds, averaging none"),
        ({"training": {"averaging": "ema", "averaged_rounds": 5}}, "training.averaged_rounds: 5 of 4 rounds"),
        ({"training": {"rounds": 9, "max_attempts": 8}}, "max_attempts: 8 attempts do not suffice for 9 rounds"),
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


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ('[privacy]\nnoise = "no"', 'privacy.noise = "no": needs true or false'),
        ("[privacy]\nnoise = 0", "privacy.noise = 0: needs true or false"),
        ('[privacy]\ndelta = "1e-5"', 'privacy.delta = "1e-5": needs a number'),
        ("[privacy]\nclipping_norm = true", "privacy.clipping_norm = true: needs a number"),
        ("[privacy]\ntarget_epsilon = 2026-01-01", 'privacy.target_epsilon = "2026-01-01": needs a number'),
        ("[training]\nrounds = true", "training.rounds = true: needs a whole number"),
        ("[training]\nrounds = 3.0", "training.rounds = 3.0: needs a whole number"),
        ('[model]\nrank = "4"', 'model.rank = "4": needs a whole number'),
        ('[model]\ntarget_modules = "v_proj"', 'model.target_modules = "v_proj": '),
        ("[model]\ntarget_modules = [1]", "model.target_modules.0 = 1: needs the name of a layer"),
        ('[secagg]\nmodulus_bits = "32"', 'secagg.modulus_bits = "32": '),
        (
            '[[sites]]\nname = "d"\nnominal_units = "20"',
            'sites.3.nominal_units = "20": needs a whole number',
        ),
        ("[[sites]]\nname = 4\nnominal_units = 20", "sites.3.name = 4: needs a name of"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_converted(toml: str, complaint: str, tmp_path: Path) -> None:
    sites = "".join(f'[[sites]]\nname = "{name}"\nnominal_units = 20\n' for name in ("a", "b", "c"))
    (tmp_path / "study.toml").write_text(sites + toml, encoding="utf-8")
    with pytest.raises(StudyError) as refusal:
        read_study(tmp_path / "study.toml")
    assert complaint in refusal.value.what


@pytest.mark.parametrize("day", ["2026-11-30", '"2026-11-30"'])
def test_a_day_is_written_with_or_without_quotes(day: str, tmp_path: Path) -> None:
    sites = "".join(f'[[sites]]\nname = "{name}"\nnominal_units = 20\n' for name in ("a", "b", "c"))
    (tmp_path / "study.toml").write_text(f"[about]\nbegins = {day}\n{sites}", encoding="utf-8")
    assert read_study(tmp_path / "study.toml").about.begins == "2026-11-30"


@pytest.mark.parametrize("sensitivity", ["identifiable", "deidentified"])
def test_a_hash_of_somebody_s_records_is_refused(sensitivity: str) -> None:
    described = {"name": "six", "nominal_units": 1, "sha256": "12" * 32}
    with pytest.raises(StudyError, match=f"a hash of {sensitivity} records is a release that no noise protects"):
        study(sites=[*SITES, {**described, "sensitivity": sensitivity}])
    with pytest.raises(StudyError, match="a hash of identifiable records"):
        study(sites=[*SITES, described])


@pytest.mark.parametrize("sensitivity", ["synthetic", "public"])
def test_records_of_nobody_can_be_named_by_their_hash(sensitivity: str) -> None:
    described = {"name": "six", "nominal_units": 1, "sensitivity": sensitivity, "sha256": "12" * 32}
    assert study(sites=[*SITES, described]).sites[-1].sha256 == "12" * 32


def test_a_whole_number_stands_for_a_fraction_and_a_list_for_a_tuple() -> None:
    read = study(training={"learning_rate": 1}, model={"target_modules": ["q_proj", "v_proj"]})
    assert read == study(training={"learning_rate": 1.0}, model={"target_modules": ("q_proj", "v_proj")})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(StudyError, match=r"model\.rank = 0: .*; training\.rounds = 0: .*; typo: no such field"):
        study(model={"rank": 0}, training={"rounds": 0}, typo=1)


def test_the_largest_delta_is_one_over_all_nominal_units() -> None:
    assert study(privacy={"delta": 0.01}).privacy.delta == 0.01


def test_two_thirds_of_the_sites_must_answer_unless_the_study_says_how_many() -> None:
    assert (study().threshold, study(secagg={"threshold": 5}).threshold) == (4, 5)
    assert complete_study(study()).secagg.threshold == study().threshold
    root = Path(__file__).parents[3]
    filled_in = [
        path.relative_to(root).as_posix()
        for folder in ("client", "common", "deploy", "server")
        for path in (root / folder).rglob("*.py")
        if "or default_threshold(" in path.read_text(encoding="utf-8")
    ]
    assert filled_in == ["common/study/study.py"], "who asks a study gets the same number everywhere"


def test_what_a_study_leaves_open_follows_from_it() -> None:
    filled = complete_study(study(training={"rounds": 20}, privacy={"noise_multiplier": 4, "sampling_probability": 1}))
    assert filled.privacy.delta == default_delta(100) == 5e-4
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
    assert filled.training.max_attempts == 12
    assert 0.99 * 3 < cost(filled) <= 3


def test_the_target_of_a_given_noise_is_what_it_costs_rounded_up() -> None:
    filled = complete_study(study(privacy={"noise_multiplier": 8, "sampling_probability": 1}))
    assert filled.privacy.target_epsilon is not None
    assert cost(filled) <= filled.privacy.target_epsilon < cost(filled) + 1e-4


def test_a_given_noise_above_the_given_target_is_refused() -> None:
    with pytest.raises(StudyError, match=r"noise_multiplier = 8 costs ε = .* above privacy\.target_epsilon = 1"):
        complete_study(
            study(
                training={"rounds": 20},
                privacy={"noise_multiplier": 8, "target_epsilon": 1, "sampling_probability": 1},
            )
        )


def test_fewer_than_two_honest_shares_are_refused_under_distributed_trust_alone() -> None:
    def three(**privacy: Any) -> Study:
        return study(sites=SITES[:3], privacy={"corrupt_sites": 2, **privacy})

    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        complete_study(three())
    with pytest.raises(PrivacyError, match="leaves 1 honest"):
        complete_study(three(noise=False))
    assert complete_study(three(noise=False, trust="local")).secagg.threshold == 3


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


@pytest.mark.parametrize(
    ("text", "complaint", "remedy"),
    [
        (None, "settings.toml cannot be read: No such file", "give the folder that `grandrounds client init` made"),
        ("rounds = 7.5\n", "settings.toml: rounds = 7.5", "correct the named fields"),
        ("rounds =\n", "settings.toml cannot be read: Invalid value", "correct the file"),
    ],
)
def test_what_is_wrong_with_settings_is_told_as_theirs(
    text: str | None, complaint: str, remedy: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(StudyError) as refused:
        read_settings(TrainingSection, tmp_path / "settings.toml", made_by="grandrounds client init")
    told = refused.value.diagnostics()
    assert complaint in told
    assert remedy in told
    assert "every site signs" not in told


@pytest.mark.parametrize("total", [1, 3, 7, 10, 99, 100, 120, 12345, 10**9])
def test_the_default_delta_is_at_most_a_tenth_of_one_over_all_units_and_what_policies_allow(total: int) -> None:
    bound = min(5e-4, 1 / (10 * total))
    assert 0.5 * bound < default_delta(total) <= bound * (1 + 1e-12)
