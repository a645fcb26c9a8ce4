"""What is said of a wrong value in anything that comes in as TOML or JSON: our own words, and never pydantic's."""

import datetime
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from grandrounds.client.budget.policy import read_policy
from grandrounds.client.node.folder import NodeSettings
from grandrounds.client.site.folder import SiteFolder
from grandrounds.common.errors import StudyError
from grandrounds.common.ledger.entries import StudyEntry
from grandrounds.common.protocol.messages import Begin
from grandrounds.common.schema import Section, Spelt, validated
from grandrounds.common.sources.source import DataSource
from grandrounds.common.study.study import Study
from grandrounds.deploy.enrolment.bundle import SiteCard
from grandrounds.deploy.simulation.settings import Simulation
from grandrounds.server.run.server_folder import ServerFolder

READ = (NodeSettings, StudyEntry, Begin, Study, SiteCard, Simulation)  # with which all others are imported
WRONG: tuple[object, ...] = (
    *(None, True, -1, 0, 7, 10**30, 2.5, -1e300, math.nan, math.inf, datetime.date(2026, 1, 1)),
    *("", "no", "St. Mary", "a\nb", "w" * 600, "--host", "é" * 64, [], [1], ["", ""], list("ab") * 999),
    *({}, {"a": 1}, {"St. Mary": 0}, {"north": {}}, [{}], [{"name": 4, "name_": 4}]),
)
THEIRS = re.compile(r"Input|should|alue error|Field required|permitted|Extra|String|Tuple|regex|\^")


def sections(model: type[Section] = Section) -> Iterator[type[Section]]:
    for each in model.__subclasses__():
        if each.__module__.startswith("grandrounds."):
            yield each
        yield from sections(each)


def test_every_wrong_value_of_every_field_is_told_by_its_name_and_in_our_own_words() -> None:
    models = set(sections())
    assert models.issuperset(READ)
    for model in models:
        for name in model.model_fields:
            for value in WRONG:
                with pytest.raises(StudyError) as refused:
                    validated(model, {name: value, "no_field": 1})
                assert "no_field: no such field" in refused.value.what
                assert not THEIRS.search(refused.value.what), refused.value.what


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sites": [{"name": "a", "nominal_units": 1}]}, "needs 3 or more, and has 1"),
        ({"round": 4}, "round: no such field; did you mean training.rounds?"),
        ({"rounds": 4}, "rounds: no such field; did you mean training.rounds?"),
        ({"training": {"round": 4}}, "training.round: no such field; did you mean training.rounds?"),
        ({"unknown": 4}, "sites: it is missing; unknown: no such field"),
        ({"privacy": {"trust": "blind"}}, 'privacy.trust = "blind": needs "distributed" or "local"'),
        ({"privacy": {"delta": math.nan}}, "privacy.delta = nan: needs a finite number"),
        ({"training": {"rounds": 100_001}}, "training.rounds = 100001: needs 100,000 or less"),
        ({"training": [4]}, "training = [4]: needs a table"),
        ({"model": {"target_modules": ["a b"]}}, 'model.target_modules.0 = "a b": needs the name of a layer'),
        (
            {"model": {"target_modules": []}},
            "model.target_modules = []: needs 1 or more, and has 0; sites: it is missing",
        ),
        ({"sites": [{"name": "a", "nominal_units": 2, "max_units": 1}]}, "sites.0.max_units: 1 is below the 2 nominal"),
    ],
)
def test_a_field_is_named_with_what_it_needs(fields: dict, told: str) -> None:
    with pytest.raises(StudyError) as refused:
        validated(Study, fields)
    assert told in refused.value.what


@pytest.mark.parametrize(
    "fields",
    [
        {"omop": "postgresql://reader:S3cret@db/cdm"},
        {"omop": {"url": ["postgresql://reader:S3cret@@db/cdm"]}},
        {"omop": {"url": "postgresql://db/cdm", "schema": ["?password=S3cret&x=1"]}},
    ],
)
def test_a_password_in_a_url_is_not_shown_whatever_field_it_stands_in(fields: dict) -> None:
    with pytest.raises(StudyError) as refused:
        validated(DataSource, fields)
    assert "needs" in refused.value.what
    assert "S3cret" not in refused.value.diagnostics()


def test_a_wrong_item_is_told_and_not_that_its_list_is_too_short() -> None:
    with pytest.raises(StudyError) as refused:
        validated(Study, {"model": {"target_modules": ["a b"]}, "sites": []})
    assert "target_modules =" not in refused.value.what


def test_a_list_is_not_too_short_where_a_field_of_its_items_is_wrong() -> None:
    sites = [{"name": f"site-{number}", "nominal_units": 0} for number in range(5)]
    with pytest.raises(StudyError) as refused:
        validated(Study, {"sites": sites})
    assert refused.value.what.count("nominal_units = 0") == 5
    assert "needs 3 or more" not in refused.value.what


def test_a_file_s_fault_names_the_file(tmp_path: Path) -> None:
    for name, read in {
        "policy.toml": lambda: read_policy(tmp_path / "policy.toml"),
        "site.toml": SiteFolder(tmp_path).settings,
        "server.toml": ServerFolder(tmp_path).settings,
    }.items():
        (tmp_path / name).write_text("data = 7\nhost = 7\n", encoding="utf-8")
        with pytest.raises(StudyError, match=rf"^{re.escape(str(tmp_path / name))}: .* = 7: needs "):
            read()


def test_ctrl_c_while_text_is_judged_is_not_told_as_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(spelt: Spelt, text: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Spelt, "_printable", interrupted)
    judged = TypeAdapter(Annotated[str, Spelt("^a$", "needs an a")])
    with pytest.raises(KeyboardInterrupt):
        judged.validate_python("a")
    monkeypatch.undo()
    with pytest.raises(ValidationError, match="needs an a"):
        judged.validate_python("b")
