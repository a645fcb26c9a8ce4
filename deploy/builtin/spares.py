"""Noise of attempts beyond the rounds, where it is the program's to choose; a study with a setting has its own."""

from collections.abc import Mapping
from typing import Any, Final

from ...common.schema import validated
from ...common.study.study import Study

# Times the noise of others in an attempt beyond the rounds: it costs ε, and is hardly ever made.
SPARE_NOISE: Final = 2.0

_STAGES: Final = "noise_stages"


def with_spare_noise(study: Study) -> Study:
    """The study with ``SPARE_NOISE`` in attempts beyond its rounds, if it has any: a derived stage, and no stated one.

    ``with_setting`` tells the two apart by whether the field is among those that were set (``model_fields_set``).
    """
    training, first = study.training, study.training.rounds + 1
    has_spares = training.max_attempts is None or training.max_attempts >= first
    privacy = study.privacy.model_copy(update={_STAGES: ((first, SPARE_NOISE),) if has_spares else ()})
    privacy.model_fields_set.discard(_STAGES)
    return study.model_copy(update={"privacy": privacy})


def with_setting(study: Study, setting: Mapping[str, Any]) -> Study:
    """The study with other values of fields, by their dotted names: it changes these, and no default beside them.

    But a derived stage of noise is derived again, from the setting's rounds and attempts, and so is a rate that nobody
    states, once the study is completed. Raises StudyError where it would be no study.
    """
    privacy = study.privacy
    is_derived = bool(privacy.noise_stages) and _STAGES not in privacy.model_fields_set
    is_derived = is_derived and f"privacy.{_STAGES}" not in setting
    tables = study.model_dump()
    if is_derived:
        tables["privacy"][_STAGES] = ()
    for name, value in setting.items():
        table, field = name.split(".")
        tables[table][field] = value
    changed = validated(Study, tables)
    return with_spare_noise(changed) if is_derived else changed
