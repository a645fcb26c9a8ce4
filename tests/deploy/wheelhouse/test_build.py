"""The wheelhouse: it installs without a network, pip refuses what was changed, and its files say what is in it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import typer
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import StudyError
from grandrounds.common.system.package_hash import package_sha256, wheel_sha256
from grandrounds.deploy.cli.wheelhouse import wheelhouse
from grandrounds.deploy.wheelhouse.build import make_wheelhouse
from grandrounds.deploy.wheelhouse.constraints import Pin, read_constraints
from grandrounds.deploy.wheelhouse.wheel import Wheel

ADDRESS = "https://user:a-password@index.invalid/simple"


def a_wheel(folder: Path, name: str, version: str, *, requires: Sequence[str] = (), metadata: str = "") -> Path:
    """A small wheel of one module, which pip installs."""
    folder.mkdir(exist_ok=True)
    spelt, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    stated = "".join(f"Requires-Dist: {text}\n" for text in requires)
    files = {
        f"{spelt}/__init__.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{stated}{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    path = folder / f"{spelt}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is all that pip knows."""
    folder = tmp_path_factory.mktemp("index")
    a_wheel(folder, "tiny-lib", "1.0")
    a_wheel(folder, "tiny-lib", "1.1", requires=["tiny_base"], metadata="License-Expression: MIT OR Apache-2.0\n")
    a_wheel(folder, "tiny-base", "2.0+cpu", metadata="Classifier: License :: OSI Approved :: BSD License\n")
    a_wheel(folder, "tiny-other", "3.0", metadata="License: UNKNOWN\n")
    source = tmp_path_factory.mktemp("source") / "setup.py"
    source.write_text("raise SystemExit('sources were built')")
    with tarfile.open(folder / "tiny_sources-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "tiny_sources-1.0/setup.py")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        settings = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull, "INDEX_URL": ADDRESS}
        for name, value in settings.items():
            patch.setenv(f"PIP_{name}", value)
        yield folder


@pytest.fixture(scope="module")
def constraints(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hash of each wheel there; the sources have none."""
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    wheels = [Wheel.read(each) for each in index.glob("*.whl") if "tiny_lib-1.0" not in each.name]
    pins = [Pin(name=each.name, version=each.version, extras=(), marker=None, sha256=(each.sha256,)) for each in wheels]
    path.write_text("".join(pin.listed() for pin in pins))
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a small program of this name, in a folder whose name is two words."""
    requires = ["Tiny.Lib>=1", 'tiny-other; extra == "more"', 'tiny-sources; extra == "sources"']
    extras = "Provides-Extra: more\nProvides-Extra: sources\nLicense-Expression: Apache-2.0\n"
    folder = tmp_path_factory.mktemp("own") / "my wheels"
    return a_wheel(folder, "grandrounds", "0.1.0", requires=requires, metadata=extras)


@dataclass(frozen=True)
class Made:
    """A wheelhouse, and what was told of it."""

    folder: Path
    told: str


@pytest.fixture(scope="module")
def made(own: Path, constraints: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One that is not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    return Made(folder, "\n".join(make_wheelhouse(folder, wheel=own, extras=["more"], constraints=constraints)))


def called(*arguments: str | Path) -> str:
    """What the command prints."""
    app = typer.Typer()
    app.command()(wheelhouse)
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False).stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def installed(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """What INSTALL.md says, in a new environment, whose pip is this one's."""
    venv.create(target)
    line = next(line for line in (folder / "INSTALL.md").read_text().splitlines() if "pip install" in line)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", target / "bin" / "python"]
    command = [*pip, *line.split()[1:]]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        command, cwd=folder, env={**env, "PIP_CONFIG_FILE": os.devnull}, capture_output=True, text=True, check=False
    )


def test_it_installs_the_program_and_all_that_it_needs_without_an_index(own: Path, made: Made, tmp_path: Path) -> None:
    done = installed(made.folder, tmp_path / "env")
    assert done.returncode == 0, done.stderr
    probe = "import grandrounds, tiny_base, tiny_other; print(grandrounds.__path__[0])"
    python = tmp_path / "env" / "bin" / "python"
    root = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert wheel_sha256(own) in made.told
    assert wheel_sha256(own) in (made.folder / "INSTALL.md").read_text()
    for name in ("client", "common", "deploy", "server"):  # which the small program lacks
        (Path(root.strip()) / name).mkdir()
    assert package_sha256(Path(root.strip())) == wheel_sha256(own)


def test_pip_refuses_a_wheel_that_was_changed(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "out")
    (wheel,) = (folder / "wheels").glob("tiny_base-*")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_base/extra.py", "")
    done = installed(folder, tmp_path / "env")
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr


def test_each_wheel_stands_in_the_requirements_with_its_hash(made: Made) -> None:
    wheels = {path.name.split("-")[0]: sha256(path.read_bytes()) for path in (made.folder / "wheels").iterdir()}
    requirements = (made.folder / "requirements.txt").read_text()
    assert requirements.splitlines() == [
        f"grandrounds==0.1.0 --hash=sha256:{wheels['grandrounds']}",
        f"tiny-base==2.0+cpu --hash=sha256:{wheels['tiny_base']}",
        f"tiny-lib==1.1 --hash=sha256:{wheels['tiny_lib']}",
        f"tiny-other==3.0 --hash=sha256:{wheels['tiny_other']}",
    ]
    assert made.told.endswith(sha256(requirements.encode()))


def test_the_bill_is_valid_and_names_each_package_with_version_hash_and_licence(made: Made) -> None:
    text = (made.folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    components = {each["name"]: each for each in (bill["metadata"]["component"], *bill["components"])}
    hashes = {path.name.split("-")[0]: sha256(path.read_bytes()) for path in (made.folder / "wheels").iterdir()}
    assert {name.replace("-", "_"): each["hashes"] for name, each in components.items()} == {
        name: [{"alg": "SHA-256", "content": found}] for name, found in hashes.items()
    }
    assert {name: each.get("licenses") for name, each in components.items()} == {
        "grandrounds": [{"license": {"id": "Apache-2.0"}}],
        "tiny-lib": [{"expression": "MIT OR Apache-2.0"}],
        "tiny-base": [{"license": {"name": "BSD License"}}],
        "tiny-other": None,
    }
    assert components["tiny-base"]["purl"] == "pkg:pypi/tiny-base@2.0%2Bcpu"
    edges = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    assert edges["pkg:pypi/grandrounds@0.1.0"] == ["pkg:pypi/tiny-lib@1.1", "pkg:pypi/tiny-other@3.0"]
    assert edges["pkg:pypi/tiny-lib@1.1"] == ["pkg:pypi/tiny-base@2.0%2Bcpu"]


def test_the_same_wheels_give_the_same_bytes_and_other_ones_replace_them(
    own: Path, made: Made, constraints: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "out")
    (folder / "wheels" / "tiny_lib-1.1-py3-none-any.whl").rename(folder / "wheels" / "tiny_lib-0.9-py3-none-any.whl")
    (folder / "requirements.txt").write_text("tiny-lib==0.9\n")
    (folder / ".new-killed" / "wheels").mkdir(parents=True)
    options = ("--wheel", own, "--extra", "more", "--python", sys.executable, "--constraints", constraints)
    told = called(folder, *options)
    assert contents(folder) == contents(made.folder)
    assert len(list(folder.iterdir())) == 4
    assert told.replace(str(folder), str(made.folder)).rstrip() == made.told
    make_wheelhouse(folder, wheel=own, constraints=constraints)
    assert {path.name.split("-")[0] for path in (folder / "wheels").iterdir()} == {
        *("grandrounds", "tiny_lib", "tiny_base")
    }
    bills = [json.loads((each / "bom.cdx.json").read_text()) for each in (folder, made.folder)]
    assert bills[0]["serialNumber"] != bills[1]["serialNumber"]


def test_where_pip_found_them_stands_in_no_file(index: Path, made: Made) -> None:
    for name, data in contents(made.folder).items():
        assert not [word for word in ("invalid", "a-password", str(index.parent)) if word.encode() in data], name


def test_a_wheel_with_another_hash_than_the_constraints_is_refused(
    own: Path, constraints: Path, tmp_path: Path
) -> None:
    right = read_constraints(constraints)["tiny-base"].sha256[0]
    altered = tmp_path / "constraints.txt"
    altered.write_text(constraints.read_text().replace(right, "0" * 64))
    with pytest.raises(StudyError, match=r"a file of tiny-base==2\.0\+cpu whose hash is not in"):
        make_wheelhouse(tmp_path / "out", wheel=own, constraints=altered)
    assert list((tmp_path / "out").iterdir()) == []


def test_of_two_builds_the_one_that_pip_chooses_is_taken_if_either_has_a_hash(
    own: Path, index: Path, constraints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Wheel.read(a_wheel(tmp_path / "other", "tiny-base", "2.0"))
    both = tmp_path / "constraints.txt"
    both.write_text(constraints.read_text().replace("2.0+cpu", f"2.0 \\\n    --hash=sha256:{other.sha256}"))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{index} {other.path.parent}")
    make_wheelhouse(tmp_path / "out", wheel=own, constraints=both)
    assert [path.name for path in (tmp_path / "out" / "wheels").glob("tiny_base-*")] == [
        "tiny_base-2.0+cpu-py3-none-any.whl"
    ]


def test_a_package_without_a_hash_is_refused(own: Path, constraints: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "constraints.txt"
    pins = [pin for pin in read_constraints(constraints).values() if pin.name != "tiny-base"]
    fewer.write_text("".join(pin.listed() for pin in pins))
    with pytest.raises(StudyError, match=r"constraints\.txt has no hash of tiny-base"):
        make_wheelhouse(tmp_path / "out", wheel=own, constraints=fewer)


@pytest.mark.usefixtures("index")
def test_a_program_without_constraints_says_that_nothing_was_compared(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grandrounds.deploy.wheelhouse.build._CHECKOUT", tmp_path)
    told = make_wheelhouse(tmp_path / "out", wheel=own)
    assert told[-1].startswith("What pip found was compared with no hash")
    assert len(list((tmp_path / "out" / "wheels").iterdir())) == 3


def test_a_package_that_has_sources_alone_is_named_and_nothing_is_built(
    own: Path, constraints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(StudyError, match="tiny-sources has no wheel for this machine") as refusal:
        make_wheelhouse(folder, wheel=own, extras=["sources"], constraints=constraints)
    assert "were built" not in refusal.value.diagnostics()
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("index")
def test_what_pip_says_is_told_without_the_addresses_in_it(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.handle_request, daemon=True).start()  # it knows no method: 501
        host = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PIP_CONSTRAINT", f"http://user:a-password@{host}/a-path/constraints.txt")
        with pytest.raises(StudyError, match="pip download failed: ERROR: ") as refusal:
            make_wheelhouse(tmp_path / "out", wheel=own)
    assert not [word for word in (host, "a-path", "a-password") if word in refusal.value.diagnostics()]


def test_a_folder_with_anything_else_in_it_is_left_alone(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "wheels").mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match=r"holds other files: thesis\.tex"):
        make_wheelhouse(folder, wheel=own)
    assert contents(folder) == {"thesis.tex": b"precious"}


def test_what_is_no_wheel_of_the_program_is_refused(tmp_path: Path) -> None:
    other, none = a_wheel(tmp_path / "other", "tiny-lib", "1.0"), tmp_path / "none.whl"
    none.write_bytes(b"PK")
    with pytest.raises(StudyError, match="is not a wheel of grandrounds"):
        make_wheelhouse(tmp_path / "out", wheel=other)
    with pytest.raises(StudyError, match=r"none\.whl is no wheel \(its contents are not what they should be\)"):
        make_wheelhouse(tmp_path / "out", wheel=none)


def test_a_wheel_that_would_install_more_than_the_program_is_refused(own: Path, tmp_path: Path) -> None:
    wheel = shutil.copy(own, tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("extra.pth", "import extra\n")
    with pytest.raises(StudyError, match=r"holds other than the program: .*extra\.pth"):
        make_wheelhouse(tmp_path / "out", wheel=Path(wheel))


def test_a_licence_is_read_whatever_letters_it_has(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path, "tiny-lib", "1.0", metadata="License: © Zoë, all rights given\n")
    assert Wheel.read(wheel).license == "© Zoë, all rights given"
