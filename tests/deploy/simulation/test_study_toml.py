"""A study file that is written says what the study is."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study, read_study
from grandrounds.deploy.simulation.config import read_simulation
from grandrounds.deploy.simulation.settings import Simulation
from grandrounds.deploy.simulation.study_toml import study_toml

SITES = [{"name": name, "nominal_units": units} for name, units in (("north", 200), ("south", 80), ("3", 7))]


@pytest.mark.parametrize(
    ("fields", "run"),
    [
        ({}, {}),
        (
            {
                "model": {"name": 'a "quoted" \\ folder # ü', "target_modules": ["q_proj", "v_proj"]},
                "privacy": {"delta": 1e-7, "sampling_probability": 1 / 3, "noise_multiplier": 1.25},
                "training": {"max_attempts": 31, "deadline_s": 1e5},
            },
            {
                "data": {"north": "north.jsonl", "south": "a b.csv", "3": "c.parquet"},
                "evaluation": "e.jsonl",
                "opted_out": {"north": "a b.txt", "3": "c.txt"},
                "similar_identifiers": "different",
                "dropouts": [],
            },
        ),
    ],
)
def test_what_is_written_is_read_back(fields: dict[str, Any], run: dict[str, Any], tmp_path: Path) -> None:
    fields = {"data": {"evaluation": "public"}, "privacy": {"delta": 1e-4}, **fields}
    study, simulation = validated(Study, {**fields, "sites": SITES}), validated(Simulation, run)
    text = study_toml(study, simulation, heading="two\nlines")
    assert text.startswith("# two\n# lines\n")
    assert read_simulation(tomllib.loads(text)) == (study, simulation)
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    assert read_study(tmp_path / "study.toml") == study, "a server passes over what is for a simulation"


def test_what_sites_and_sampling_state_is_not_stated_twice() -> None:
    study = validated(Study, {"sites": SITES, "privacy": {"delta": 1e-4}, "data": {"evaluation": "synthetic"}})
    simulation = Simulation(units_per_step=24, nominal_units={"north": 200, "south": 80, "3": 7})
    read, _ = read_simulation(tomllib.loads(study_toml(study, simulation)))
    assert read == study
