"""What stands for what an author leaves out on the built-in model."""

from typing import Any

import pytest

from grandrounds.common.errors import StudyError
from grandrounds.common.schema import validated
from grandrounds.common.study.builtin import TUNED
from grandrounds.common.study.study import Study

SITES = [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")]


def study(**tables: Any) -> dict[str, Any]:
    return validated(Study, {"sites": SITES, **tables}).model_dump()


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
    assert found["training"].pop("learning_rate") == 1.2
    assert tuned["training"].pop("learning_rate") == 2.4
    assert found == tuned
    both = study(training={"learning_rate": 4.8}, privacy={"clipping_norm": 0.15})
    assert both["privacy"].pop("clipping_norm") == 0.15
    assert both["training"].pop("learning_rate") == 4.8
    assert both["model"] == tuned["model"]


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
