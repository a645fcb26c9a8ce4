"""The wheel holds everything that the checkout runs with, and nothing besides."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.places import ROOT
from support.study.federation import small_manifest, small_study

from grandrounds.client.node.folder import NodeSettings
from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.system.package_hash import package_sha256, wheel_sha256
from grandrounds.common.version import __version__
from grandrounds.deploy.enrolment.bundle import Bundle, Flower, connection_sha256
from grandrounds.deploy.wheelhouse.build import build_wheel

# Runs commands one after the other in one process, and says after each how it ended and whether the libraries of model
# or federation were loaded by then. PYTHONPATH comes before what is installed here.
COMMANDS = """
import json, sys
import grandrounds
from grandrounds.deploy.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["grandrounds", *arguments]
    try:
        main()
    except SystemExit as end:
        loaded = sorted({"torch", "flwr", "transformers"} & set(sys.modules))
        print(json.dumps([end.code, grandrounds.__file__, loaded]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git tracks: setuptools would leave a build folder in the checkout, or pick one up.
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and not path.is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command: list[str | Path] = [*pip, "--wheel-dir", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_shipped_file(wheel: Path) -> None:
    folders = ("client", "common", "deploy", "server")
    wanted = {
        f"grandrounds/{path.relative_to(ROOT).as_posix()}"
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"grandrounds/__init__.py", "grandrounds/py.typed"}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert sorted(wanted - held) == []
    assert not [name for name in held if "tests" in name or name.startswith("build")]


def test_wheel_and_checkout_have_one_hash(wheel: Path) -> None:
    assert wheel_sha256(wheel) == package_sha256(ROOT)


def test_the_wheel_that_is_built_for_a_wheelhouse_is_that_of_the_whole_checkout(wheel: Path, tmp_path: Path) -> None:
    built = build_wheel(tmp_path)
    assert built.name == wheel.name
    assert contents(built) == contents(wheel)
    dates = {member.date_time for member in zipfile.ZipFile(built).infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, without the libraries that it needs."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    install: list[str | Path]
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", folder, wheel]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def called(site: Path, *commands: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """What comes of commands of the package that is installed there."""
    probe = [sys.executable, "-B", "-c", COMMANDS, json.dumps([[str(word) for word in each] for each in commands])]
    return subprocess.run(
        probe, capture_output=True, text=True, check=True, cwd=site.parent, env={"PYTHONPATH": str(site)}
    )


def test_the_command_runs_from_the_installed_wheel(site: Path) -> None:
    done = called(site, ["--help"])
    assert "simulate" in done.stdout
    code, file, loaded = json.loads(done.stdout.splitlines()[-1])
    assert (code, loaded) == (0, [])
    assert file.startswith(str(site))


def test_an_installed_package_has_the_wheel_s_hash(wheel: Path, site: Path) -> None:
    assert package_sha256(site / "grandrounds") == wheel_sha256(wheel)


@pytest.fixture
def joined(wheel: Path, tmp_path: Path) -> Path:
    """A site's folder with a study of the wheel's program, and beside it that study's bundle."""
    identities = {f"site-{i}": Identity.generate() for i in range(1, 6)}
    pinned = wheel_sha256(wheel)
    pins = {"package_sha256": pinned, "connection_sha256": connection_sha256("a:1", b"")}
    manifest = small_manifest(small_study(), identities, Identity.generate(), dimension=7, **pins)
    folder = tmp_path / "site-1"
    folder.mkdir()
    (folder / "site.toml").write_text('name = "site-1"\ndata = "notes.jsonl"\nmodel = "model"\n')
    study = folder / "studies" / manifest.study_id[:12]
    (study / "node").mkdir(parents=True)
    (study / "study.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))
    Bundle(manifest=manifest, frozen_adapter=b"", certificates=b"", flower=Flower(address="a:1")).write(
        tmp_path / "study.zip"
    )
    node = NodeSettings(
        address="a:1",
        app_sha256=str(manifest.app_sha256),
        package_version=__version__,
        package_sha256=pinned,
        socket=Path("run/worker.sock"),
        runtime_port=9094,
        timeout_s=1,
        largest_bytes=1 << 20,
    )
    (study / "node" / "node.json").write_bytes(canonical_json(node.model_dump(mode="json")))
    return folder


def test_one_changed_byte_and_no_command_of_a_site_goes_on(site: Path, joined: Path, tmp_path: Path) -> None:
    pinned = package_sha256(site / "grandrounds")
    changed = shutil.copytree(site, tmp_path / "changed")
    with (changed / "grandrounds" / "server" / "rounds" / "accountant.py").open("ab") as file:
        file.write(b"\n")
    running = package_sha256(changed / "grandrounds")
    study = joined.parent / "study.zip"
    commands: list[list[str | Path]] = [
        *(["client", name, joined] for name in ("worker", "check", "start", "node")),
        ["client", "join", joined, study, "--yes"],
    ]
    done = called(changed, *commands)
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert ends == [[1, str(changed / "grandrounds" / "__init__.py"), []]] * len(commands)
    said = [line for line in done.stderr.splitlines() if line.startswith("grandrounds: ")]
    refusal = (
        f"grandrounds: the study runs grandrounds {__version__} with files of SHA-256 {pinned}, and installed here is "
        f"{__version__} with files of {running}. Why it matters: "
    )
    assert len(said) == len(commands)
    assert [line for line in said if not line.startswith(refusal)] == []


def test_the_unchanged_program_is_not_refused(site: Path, joined: Path) -> None:
    (joined / "site.toml").unlink()
    done = called(site, ["client", "worker", joined])
    assert "site.toml" in done.stderr
    assert "installed here" not in done.stderr
