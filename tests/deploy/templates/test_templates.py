"""The example studies say what is true."""

import tomllib
from pathlib import Path

import pytest
from support.study.federation import small_manifest

import grandrounds.deploy.templates
from grandrounds.client.budget.policy import AllowedModel, DataPolicy, Policy, StudyPolicy, read_policy, violations
from grandrounds.client.minimisation.rules import Minimisation
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.schema import Section
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import LARGEST_DEFAULT_DELTA, Study, read_study
from grandrounds.deploy.simulation.config import read_simulation
from grandrounds.deploy.simulation.settings import Simulation
from grandrounds.deploy.simulation.study_toml import full_example

TEMPLATES = Path(grandrounds.deploy.templates.__file__).parent


def test_the_full_example_names_every_field_of_a_study() -> None:
    text = (TEMPLATES / "study.full.toml").read_text(encoding="utf-8")
    # Commented-out settings count: they are the ones that exclude another.
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    named = {line.split("=")[0].strip() for line in lines if "=" in line}
    sections: tuple[type[Section], ...] = (*Study.sections().values(), Simulation)
    for section in sections:
        assert set(section.model_fields) - named - {"data"} == set()


def test_the_full_example_is_what_the_fields_declare() -> None:
    text = (TEMPLATES / "study.full.toml").read_text(encoding="utf-8")
    assert text == full_example(), "a field was changed: `make templates` writes it"


def test_the_full_policy_names_every_field_and_states_the_defaults() -> None:
    text = (TEMPLATES / "policy.full.toml").read_text(encoding="utf-8")
    named = {line.removeprefix("# ").split("=")[0].strip() for line in text.splitlines() if "=" in line}
    for section in (StudyPolicy, DataPolicy, AllowedModel, Minimisation):
        assert set(section.model_fields) - named - {"models"} == set()
    assert read_policy(TEMPLATES / "policy.full.toml") == Policy()


def test_the_basic_policy_allows_the_basic_study_s_target() -> None:
    policy = read_policy(TEMPLATES / "policy.basic.toml")
    tables = tomllib.loads((TEMPLATES / "study.basic.toml").read_text(encoding="utf-8"))
    assert tables["privacy"]["target_epsilon"] <= policy.study.largest_epsilon <= policy.data.epsilon
    assert policy.study.largest_delta <= policy.data.delta
    assert not policy.data.synthetic_data_only


def test_a_study_of_the_server_s_template_passes_a_site_s_but_for_the_keys() -> None:
    study = complete_study(read_study(TEMPLATES / "study.server.toml"))
    identities = {site.name: Identity.generate() for site in study.sites}
    manifest = small_manifest(study, identities, Identity.generate(), dimension=7, app_sha256=None)
    policy = read_policy(TEMPLATES / "policy.basic.toml")
    points = list(violations(policy, manifest, name="north"))
    assert {point.field for point in points} == {"study.verified_peers"}
    assert policy.data.epsilon >= 2 * 4 and policy.data.delta >= 2 * manifest.delta, "two such studies"
    assert policy.study.largest_delta == LARGEST_DEFAULT_DELTA


def test_the_full_example_states_the_defaults() -> None:
    tables = tomllib.loads((TEMPLATES / "study.full.toml").read_text(encoding="utf-8"))
    study, _ = read_simulation(tables)
    default, _ = read_simulation({})
    assert study.sites == tuple(site.model_copy(update={"max_units": 30}) for site in default.sites)
    assert (study.model, study.data) == (default.model, default.data)
    given = study.privacy.model_dump(exclude_none=True)
    stated = {**default.privacy.model_dump(), "target_epsilon": 4.0, "delta": 5e-4, "sampling_probability": 0.6}
    assert given == {name: value for name, value in stated.items() if value is not None}
    assert study.training == default.training.model_copy(update={"max_attempts": 5})


def test_the_basic_example_runs_on_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = tomllib.loads((TEMPLATES / "study.basic.toml").read_text(encoding="utf-8"))
    for name, file in tables["simulation"]["data"].items():
        path = Path(file).with_suffix(".jsonl")
        path.write_text('{"patient_id": 1, "text": "well"}\n' * 12, encoding="utf-8")
        tables["simulation"]["data"][name] = path
    study, simulation = read_simulation(tables)
    assert [(site.name, site.nominal_units) for site in study.sites] == [("north", 200), ("south", 80), ("west", 100)]
    assert simulation.evaluation == Path("evaluation.jsonl")
