"""What stands for what an author leaves out on the built-in model."""

from typing import Any

import pytest

from grandrounds.common.errors import StudyError
from grandrounds.common.schema import known, validated
from grandrounds.common.study.builtin import TUNED
from grandrounds.common.study.completion import complete_study, learning_rate_of
from grandrounds.common.study.study import Study

SITES = [{"name": name, "nominal_units": 40} for name in ("north", "south", "west")]


def study(**tables: Any) -> dict[str, Any]:
    return validated(Study, {"sites": SITES, **tables}).model_dump()


def rate(**tables: Any) -> float:
    """Of a study of these tables, once it is complete: twice, and written down in between."""
    found = validated(Study, {"sites": SITES, **tables})
    completed = complete_study(found)
    assert complete_study(completed) == completed == complete_study(validated(Study, found.model_dump()))
    assert learning_rate_of(found) == known(completed.training.learning_rate)
    return learning_rate_of(found)


def test_the_built_in_model_is_trained_as_it_was_tuned_unless_something_else_is_stated() -> None:
    found = study()
    assert all(found[table][field] == value for table, fields in TUNED.items() for field, value in fields.items())
    for stated in (
        {"model": {"rank": 8}},
        {"model": {"dora": True}},
        {"training": {"optimizer": "adam"}},
        {"privacy": {"clipping_norm": 1.0}},
    ):
        assert study(**stated)["model"]["target_modules"] == ("v_proj",)


def test_a_rate_that_is_stated_stands_in_the_tuned_one_s_place_and_changes_nothing_else() -> None:
    found, tuned = study(training={"learning_rate": 1.2}), study()
    assert found["training"].pop("learning_rate") == 1.2 == rate(training={"learning_rate": 1.2})
    assert tuned["training"].pop("learning_rate") is None
    assert found == tuned
    both = study(training={"learning_rate": 4.8}, privacy={"clipping_norm": 0.15})
    assert both["privacy"].pop("clipping_norm") == 0.15
    assert both["training"].pop("learning_rate") == 4.8
    assert both["model"] == tuned["model"]


@pytest.mark.parametrize(
    ("units", "privacy", "expected"),
    [
        (40, {}, 2.4),
        (40, {"target_epsilon": 8}, 2.4),
        (160, {"target_epsilon": 1.0}, 2.4),
        (80, {"target_epsilon": 1.0}, 2.1),
        (40, {"target_epsilon": 2.0}, 1.6),
        (40, {"target_epsilon": 1.0}, 1.0),
        (20, {}, 1.2),
        (2, {"noise": False}, 2.4),
        (20, {"noise_multiplier": 9.0}, 0.11),
        (20, {"noise_multiplier": 9.0, "target_epsilon": 4.0}, 0.11),
    ],
)
def test_the_tuned_rate_goes_as_one_over_the_noise_and_is_whole_without(
    units: int, privacy: dict[str, Any], expected: float
) -> None:
    """On schedules of the kind that it was chosen on."""
    sites = [{**site, "nominal_units": units} for site in SITES]
    drawn = {"sampling_probability": 0.25, **privacy}
    assert rate(sites=sites, privacy=drawn) == expected
    assert rate(sites=sites, privacy=drawn, training={"learning_rate": 2.4}) == 2.4
    assert rate(sites=sites, privacy=drawn, model={"rank": 8}) == 0.05, "of what was not tuned no rate was"
    descent = {"model": {"rank": 8}, "training": {"optimizer": "sgd"}}
    halved = rate(sites=sites, privacy={**drawn, "clipping_norm": 0.6}, **descent)
    assert halved == pytest.approx(expected / 2, rel=0.05), "whoever edits what was proposed keeps the step's length"
    for other in ({"trust": "local"}, {"model": {"name": "tiny"}}):
        trust = {"trust": other.pop("trust", "distributed")}
        assert rate(sites=sites, privacy={**drawn, **trust}, training={"optimizer": "sgd"}, **other) == (
            0.05 if other or trust["trust"] == "local" else expected
        )


@pytest.mark.parametrize(
    "more", [{"sites_per_patient": 3}, {"rounds": 40}, {"sampling_probability": 0.05}, {"max_attempts": 40}]
)
def test_whatever_makes_the_noise_larger_makes_the_rate_smaller(more: dict[str, Any]) -> None:
    training = {name: more[name] for name in ("rounds", "max_attempts") if name in more}
    privacy = {"sampling_probability": 0.25} | {name: value for name, value in more.items() if name not in training}
    completed = complete_study(validated(Study, {"sites": SITES, "privacy": privacy, "training": training}))
    noise = known(completed.privacy.noise_multiplier) / (120 * completed.privacy.sampling_probability)
    assert noise > 0.04
    assert completed.training.learning_rate == pytest.approx(2.4 * 0.0287 / noise, rel=0.05)
    assert known(completed.training.learning_rate) < 1.8


def test_a_rate_that_follows_is_one_that_may_be_stated() -> None:
    descent = {"optimizer": "sgd"}
    assert rate(privacy={"clipping_norm": 0.005, "noise": False}, training=descent) == 100.0
    assert rate(privacy={"clipping_norm": 0.3}, training={"optimizer": "disk"}) == rate(), "whose steps are as long"


@pytest.mark.parametrize(("table", "field"), [(table, field) for table, fields in TUNED.items() for field in fields])
def test_what_is_stated_as_it_was_tuned_changes_nothing(table: str, field: str) -> None:
    value = TUNED[table][field]
    as_in_toml = list(value) if isinstance(value, tuple) else value
    assert study(**{table: {field: as_in_toml}}) == study()


def test_the_tuned_optimiser_may_be_stated_beside_a_rate_and_another_one_departs() -> None:
    rate = study(training={"learning_rate": 1.2})
    assert study(training={"learning_rate": 1.2, "optimizer": "sgd"}) == rate
    other = study(training={"learning_rate": 1.2, "optimizer": "adam"})
    assert other["model"]["layers"] is None and other["model"] != rate["model"]


@pytest.mark.parametrize("tables", [{"model": {"name": "tiny"}}, {"privacy": {"trust": "local"}}])
def test_no_other_model_is_nor_a_step_of_a_site_alone(tables: dict[str, Any]) -> None:
    assert study(**tables)["model"]["layers"] is None


def test_layers_are_a_first_and_a_last_one() -> None:
    assert study(model={"name": "tiny", "layers": [3, 3]})["model"]["layers"] == (3, 3)
    for wrong in ([4, 3], [1], [-1, 2], ["1", "2"]):
        with pytest.raises(StudyError, match="layers"):
            study(model={"name": "tiny", "layers": wrong})
