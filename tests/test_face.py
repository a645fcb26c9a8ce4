"""The package's face: everything that it names is there, is described, and is loaded when it is first asked for."""

import ast
import subprocess
import sys

import pytest

import grandrounds

HEAVY = {"dp_accounting", "flwr", "numpy", "peft", "pydantic", "scipy", "torch", "transformers"}
ENTRY_POINTS = ("Study", "epsilon", "simulate", "verify")


def loaded(code: str) -> set[str]:
    """Which of the heavy libraries a new process has loaded once it has run ``code``."""
    probe = f"{code}\nimport sys\nprint({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    found = done.stdout.strip()
    return set() if found == "set()" else set(ast.literal_eval(found))


def test_importing_the_package_loads_no_library() -> None:
    assert loaded("import grandrounds; dir(grandrounds)") == set()


def test_a_study_is_written_without_torch_or_flower() -> None:
    assert not {"flwr", "torch", "transformers"} & loaded("from grandrounds import Study, epsilon, verify")


def test_every_name_is_there_and_described() -> None:
    assert set(grandrounds.__all__) <= set(dir(grandrounds))
    things = {name: getattr(grandrounds, name) for name in grandrounds.__all__ if name != "__version__"}
    assert [name for name, thing in things.items() if not thing.__doc__ or thing.__name__ != name] == []


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_an_example(name: str) -> None:
    # tests/test_doctests.py runs it, where it is defined.
    assert ">>> " in getattr(grandrounds, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'simulation'"):
        _ = grandrounds.simulation
