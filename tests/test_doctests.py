"""Every example in a docstring of shipped code is true."""

import doctest
import importlib
import pkgutil

import pytest

import grandrounds


def modules() -> list[str]:
    found = pkgutil.walk_packages(grandrounds.__path__, "grandrounds.")
    return [module.name for module in found if not module.name.startswith(("grandrounds.tests", "grandrounds.build"))]


def test_every_folder_of_shipped_code_is_searched() -> None:
    assert {name.split(".")[1] for name in modules()} >= {"client", "common", "deploy", "server"}


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0
