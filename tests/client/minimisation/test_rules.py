"""What policy.toml says of minimisation, and what a study may repeat of it: rules, and no counts."""

import pytest

from grandrounds.client.minimisation.rules import Minimisation
from grandrounds.common.errors import StudyError
from grandrounds.common.schema import validated


def test_each_rule_is_said_in_words_and_nothing_where_there_is_none() -> None:
    rules = {
        "suppress_columns": ["dob"],
        "replace": [{"pattern": "a", "with": "b"}, {"pattern": "c", "with": "d"}],
        "names_file": "staff.txt",
        "shift_dates": True,
        "day_first": True,
        "numbers": True,
        "hook": "hospital.deid:run",
        "near_duplicates": 0.9,
        "records_per_patient": {"least": 2, "most": 200},
    }
    assert validated(Minimisation, rules).in_words == (
        "columns suppressed",
        "patterns replaced",
        "names on a list replaced",
        "dates shifted",
        "long numbers replaced",
        "passed through hospital.deid:run",
        "duplicates counted once",
        "near-duplicates (0.9) counted once",
        "patients with fewer than 2 records left out",
        "at most 200 records of a patient",
    )
    assert Minimisation().in_words == ()
    assert not Minimisation().changes_texts
    assert not Minimisation().chooses_records


@pytest.mark.parametrize("field", [*Minimisation.model_fields])
def test_a_rule_that_is_there_is_in_the_words(field: str) -> None:
    some = {
        "suppress_columns": ["dob"],
        "replace": [{"pattern": "a", "with": "b"}],
        "names_file": "staff.txt",
        "hook": "a:b",
        "duplicates": "once",
        "near_duplicates": 0.9,
        "records_per_patient": {"least": 2},
    }
    rules = validated(Minimisation, {field: some.get(field, True)})
    assert bool(rules.in_words) is (field != "day_first")  # which says how dates are read


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"hook": "run"}, "needs module:function"),
        ({"records_per_patient": {"least": 3, "most": 2}}, "most: 2 is below the least, 3"),
        ({"near_duplicates": 0.4}, "needs 0.5 or more"),
        ({"replace": [{"pattern": "(", "with": "x"}]}, "is no regular expression"),
        ({"replace": [{"pattern": "x"}]}, "replace.0.with: it is missing"),
        ({"shift_date": True}, "did you mean shift_dates"),
    ],
)
def test_rules_that_do_not_mean_what_they_say_are_refused_by_name(rules: dict[str, object], said: str) -> None:
    with pytest.raises(StudyError) as refusal:
        validated(Minimisation, rules)
    assert said in refusal.value.what
