"""The shape that ARCHITECTURE.md promises: which folder may import which, and where a library may be used."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.places import ROOT

FOLDERS = ("client", "common", "deploy", "server")
# Programs to copy from, which import the package by its name, as whoever copies them must. Nothing imports them.
EXAMPLES = ROOT / "deploy" / "examples"
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
    # One place draws what is random, and can be judged. What commands draw besides is nobody's noise, mask or sample.
    "secrets": ("common/crypto/csprng.py", "deploy/"),
    "random": ("common/data/text_lengths.py", "deploy/"),
    "peft": ("common/model/peft_library.py",),
    "cyclonedx": ("deploy/wheelhouse/bill_of_materials.py",),
    "bitsandbytes": ("common/model/nf4.py", "deploy/bench/"),
    "transformers": (
        "common/model/base_model.py",
        "common/model/language_model.py",
        "common/model/nf4.py",
        "common/model/target_layers.py",
        "common/data/tokenisation.py",
        "deploy/adapter/gguf_file.py",
        "deploy/bench/wide_model.py",
        "deploy/bench/",
        "deploy/builtin/models.py",
    ),
}


def shipped() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def imported(path: Path) -> set[str]:
    """The top-level names of every absolute import in a file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_command_prints_by_the_one_console_that_takes_words_as_they_are() -> None:
    made = [path for path in shipped() if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))]
    assert made == [ROOT / "deploy" / "views" / "console.py"]


def test_no_process_of_a_pool_outlives_who_started_it() -> None:
    """That ``end_with_parent`` does what it says is shown in common/system/test_processes.py."""
    pools = {path: path.read_text(encoding="utf-8") for path in shipped()}
    pools = {path: text for path, text in pools.items() if "ProcessPoolExecutor(" in text}
    assert ROOT / "deploy" / "bench" / "utility" / "bench.py" in pools
    without = [path for path, text in pools.items() if not re.search(r"initializer=(end_with_parent|_begin)\b", text)]
    without += [path for path, text in pools.items() if "end_with_parent" not in text]
    assert not without


def test_dependencies_point_down() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    places = [path.relative_to(ROOT).as_posix() for path in shipped() if library in imported(path)]
    assert [place for place in places if not place.startswith(ALLOWED[library])] == []
    assert places, f"{library} is not used at all: take it out of the table"


def test_no_other_generator_is_asked_for_what_is_random_at_a_server_or_a_site() -> None:
    """Those of numpy and torch are given a seed, so that nobody takes what they draw for a secret."""
    unseeded = re.compile(
        r"urandom|uuid[14]\(|SystemRandom|default_rng|np\.random\.(?!Generator|Philox)|Philox\((?!key=)|torch\.seed"
        r"|torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial)\((?!.*generator=)"
    )
    found = {path.relative_to(ROOT).as_posix(): unseeded.findall(path.read_text("utf-8")) for path in shipped()}
    assert {place: said for place, said in found.items() if said and not place.startswith("deploy/")} == {}


def test_shipped_code_imports_its_siblings_relatively() -> None:
    by_name = [path for path in shipped() if "grandrounds" in imported(path)]
    assert [path for path in by_name if not path.is_relative_to(EXAMPLES)] == []


def test_examples_import_the_package_as_its_users_do() -> None:
    relative = [
        path
        for path in EXAMPLES.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("command", [[], ["simulate"], ["plan"]])
def test_help_loads_no_heavy_library(command: list[str]) -> None:
    probe = (
        "import sys\n"
        "from grandrounds.deploy.cli.main import main\n"
        f"sys.argv = ['grandrounds', *{command}, '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'flwr', 'scipy', 'dp_accounting', 'pyarrow'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("[]")


def rooms() -> list[Path]:
    """Every folder of shipped code."""
    return sorted({path.parent for path in shipped() if path.name == "__init__.py"})


@pytest.mark.parametrize("room", [path.relative_to(ROOT).as_posix() for path in rooms()])
def test_the_map_of_rooms_says_of_each_what_it_says_of_itself(room: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
    page = " ".join((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split())
    assert f"`{room}/`: {said}".replace("``", "`") in page


def test_every_folder_of_shipped_code_is_a_room() -> None:
    assert {path.parent for path in shipped() if "empty_app" not in path.parts} == set(rooms())


def test_no_room_is_a_hall_and_no_file_two_nouns() -> None:
    helpers = (ROOT / "tests" / "support").rglob("*.py")
    crowded = Counter(path.parent for path in (*shipped(), *helpers) if path.name != "__init__.py")
    assert [room for room, files in crowded.items() if files > 16] == []
    assert [path for path in shipped() if path.read_text(encoding="utf-8").count("\n") > 400] == []


def test_nobody_imports_the_package_s_face() -> None:
    for path in shipped():
        depth = len(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level == depth and node.module is None), path
