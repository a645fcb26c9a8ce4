"""What mkdocs builds the site from: the pages at their places in the tree, and one page for each room's docstrings.

A page keeps its path, so that links between pages hold in the site as they do on a code host. Whatever a page links to
beside pages, such as a template, comes along as a file. (``mkdocs.yml`` names this as its hook.)
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = "grandrounds"
SOURCES = ("client", "common", "deploy", "server")
# The pages of most use, first and in this order; the others follow by their paths.
ROADS = {
    "Grand Rounds": ("README.md", "ARCHITECTURE.md", "deploy/RESULTS.md", "CHANGELOG.md"),
    "Operating": ("deploy/OPERATIONS.md", "deploy/SOURCES.md", "deploy/PITFALLS.md", "tests/soak/RESULTS.md"),
    "The claim": ("common/privacy/MECHANISM.md", "common/secagg/PROTOCOL.md", "SECURITY.md"),
    "Contributing": ("CONTRIBUTING.md", "RELEASE.md"),
}
# Filled in for each study: a page only then.
TEMPLATES = ("model_card.md",)
DOCUMENTED = ("common", "client", "server")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
DOCTEST = re.compile(r"(?:^[ ]*>>> .*\n(?:[ ]*\S.*(?:\n|\Z))*)+", re.MULTILINE)


def pages() -> list[str]:
    """The path of every page, from the root."""
    found = [*ROOT.glob("*.md"), *(page for folder in (*SOURCES, "tests") for page in (ROOT / folder).rglob("*.md"))]
    return sorted(page.relative_to(ROOT).as_posix() for page in found if page.name not in TEMPLATES)


def linked(page: str) -> Iterator[str]:
    """The files of the tree that a page links to, by their paths from the root."""
    for target in LINK.findall((ROOT / page).read_text("utf-8")):
        path = (ROOT / page).parent.joinpath(target).resolve()
        if "://" not in target and path.is_file() and path.is_relative_to(ROOT):
            yield path.relative_to(ROOT).as_posix()


def rooms() -> list[str]:
    """The folders of code whose docstrings have a page, from the root."""
    inits = (init for folder in DOCUMENTED for init in (ROOT / folder).rglob("__init__.py"))
    return sorted(init.parent.relative_to(ROOT).as_posix() for init in inits)


def reference(room: str) -> str:
    """The page of a room's docstrings, as mkdocstrings reads it; without modules that say nothing beyond a room's."""
    modules = sorted(path.stem for path in (ROOT / room).glob("[!_]*.py"))
    dotted = f"{PACKAGE}.{room.replace('/', '.')}"
    members = "".join(f"\n::: {dotted}.{module}\n" for module in modules)
    return f"# {room}\n\n::: {dotted}\n    options:\n      show_root_heading: false\n      members: false\n{members}"


FACE = f"# {PACKAGE}\n\n::: {PACKAGE}\n    options:\n      show_root_heading: false\n      members: true\n"


@event_priority(100)  # before mkdocstrings', which looks for its folder once
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the program's files to where mkdocstrings looks for them, and lay the pages out."""
    package = ROOT / "build" / "docs" / PACKAGE
    shutil.rmtree(package, ignore_errors=True)
    for source in (*ROOT.glob("*.py"), *(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))):
        copy = package / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    config.nav = navigation()
    return config


def navigation() -> list[dict[str, Any]]:
    """Every page once, under its heading."""
    placed = {page for road in ROADS.values() for page in road}
    others = [page for page in pages() if page not in placed]
    decisions = [page for page in others if page.startswith("deploy/decisions/")]
    return [
        *({heading: [page for page in road if (ROOT / page).exists()]} for heading, road in ROADS.items()),
        {"Decisions": [{"Index": decisions.pop(decisions.index("deploy/decisions/README.md"))}, *decisions]},
        {"Rooms": [{page.removesuffix("/README.md"): page} for page in others if not page.startswith("deploy/dec")]},
        {"Reference": [{PACKAGE: "reference/index.md"}, *({room: f"reference/{room}.md"} for room in rooms())]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages, what they link to, and the reference, in place of the folder that mkdocs has read."""
    paths = dict.fromkeys((*pages(), *(target for page in pages() for target in linked(page))))
    kept = [file for file in files if not file.src_uri.endswith(".md")]  # the theme's own
    kept += [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in paths]
    kept.append(File.generated(config, "reference/index.md", content=FACE))
    kept += [File.generated(config, f"reference/{room}.md", content=reference(room)) for room in rooms()]
    return Files(kept)


class DoctestsAsCode(griffe.Extension):
    """Examples in docstrings as code: in Markdown their prompts would be quotations in quotations."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(
                lambda found: f"\n```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )
