"""The shape that ARCHITECTURE.md promises: which folder may import which, and where a library may be used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

FOLDERS = ("client", "common", "deploy", "server")
# Where each library may be imported; every other one may be imported anywhere.
ALLOWED = {
    "flwr": ("client/node/", "server/rounds/app.py", "deploy/"),
    "opacus": ("client/training/grad_samples.py", "deploy/bench/"),
    "cryptography": (
        "common/crypto/csprng.py",
        "common/crypto/identity.py",
        "common/secagg/keys.py",
        "deploy/enrolment/",
    ),
    "peft": ("common/model/language_model.py", "common/data/tokenisation.py", "deploy/builtin/models.py"),
    "cyclonedx": ("deploy/wheelhouse/bill_of_materials.py",),
    "transformers": ("common/model/language_model.py", "common/data/tokenisation.py", "deploy/builtin/models.py"),
}


def shipped() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level names of every absolute import in a file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_dependencies_point_down() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    places = [path.relative_to(ROOT).as_posix() for path in shipped() if library in imported(path)]
    assert [place for place in places if not place.startswith(ALLOWED[library])] == []
    assert places, f"{library} is not used at all: take it out of the table"


def test_shipped_code_imports_its_siblings_relatively() -> None:
    assert [path for path in shipped() if "grandrounds" in imported(path)] == []


def test_help_loads_no_heavy_library() -> None:
    probe = (
        "import sys\n"
        "from grandrounds.deploy.cli.main import main\n"
        "sys.argv = ['grandrounds', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'flwr', 'scipy', 'dp_accounting', 'pyarrow'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("[]")
