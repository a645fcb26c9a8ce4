"""The site of all pages is built without a warning, has every page, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import griffe
import pytest

from pages.collect import DOCTEST, ROOT, linked, pages, rooms

ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
# What a browser fetches by itself; a link that is followed by hand may lead anywhere.
FETCHED = {
    **dict.fromkeys(
        ("audio", "embed", "iframe", "img", "input", "script", "source", "track", "video"), ("src", "srcset")
    ),
    "link": ("href",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
IN_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
IN_SCRIPT = re.compile(r"[\"'`]https?://", re.IGNORECASE)


class Fetched(HTMLParser):
    """The addresses elsewhere that a page has a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = [value for name, value in attrs if value and name in FETCHED.get(tag, ())]
        self.elsewhere += [value for value in given if ELSEWHERE.match(value)]
        self.elsewhere += [value for name, value in attrs if name == "style" and value and IN_STYLE.search(value)]


def from_elsewhere(path: Path, text: str) -> list[str]:
    """What a file of the site would load from another one."""
    if path.suffix == ".html":
        in_styles = re.findall(r"<style.*?</style>", text, re.DOTALL)
        return [*Fetched(text).elsewhere, *(style for style in in_styles if IN_STYLE.search(style))]
    pattern = {".css": IN_STYLE, ".js": IN_SCRIPT}.get(path.suffix)
    return pattern.findall(text) if pattern else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command: list[str | Path] = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


def built(site: Path) -> Iterator[tuple[Path, str]]:
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            yield path, path.read_text("utf-8")


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    assert {str(path): found for path, text in built(site) if (found := from_elsewhere(path, text))} == {}


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/css">'),
        ("a.html", '<p><img alt="" src="HTTP://example/x.png"></p>'),
        ("a.html", '<p style="background: url(https://example/x.png)">'),
        ("a.html", "<style>@import 'https://example/x.css';</style>"),
        ("a.css", "src: url(//fonts.example/x.woff2)"),
        ("a.js", 'fetch("https://example/x")'),
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_noticed(name: str, text: str) -> None:
    assert from_elsewhere(Path(name), text)


def test_a_link_to_elsewhere_is_none_of_it() -> None:
    assert from_elsewhere(Path("a.html"), '<a href="https://example">x</a> <img src="x.png">') == []


def test_every_page_and_every_room_is_on_the_site(site: Path) -> None:
    html = [re.sub(r"README$", "index", page.removesuffix(".md")) for page in pages()]
    html += [f"reference/{room}" for room in rooms()]
    assert [page for page in html if not (site / f"{page}.html").is_file()] == []


def test_a_page_comes_with_the_files_that_it_links_to(site: Path) -> None:
    files = {target for page in pages() for target in linked(page) if not target.endswith(".md")}
    assert files
    assert [name for name in files if (site / name).read_bytes() != (ROOT / name).read_bytes()] == []


def test_lists_are_lists_on_the_site_too(site: Path) -> None:
    # A code host takes a list right after a paragraph for one; the site needs an empty line before it.
    assert [
        str(path) for path, text in built(site) if re.search(r"<p>[^<]*(?:<(?!/p)[^<]*)*\n(?:-|\d+\.) ", text)
    ] == []


def test_an_example_in_a_docstring_is_code() -> None:
    docstring = "One line.\n\n>>> f(1)\n2\n>>> g()\n3\n\nMore."
    assert DOCTEST.findall(docstring) == [">>> f(1)\n2\n>>> g()\n3\n"]


def test_the_face_s_names_are_found_without_importing_them(site: Path) -> None:
    # `site` has laid the sources out.
    face = griffe.load("grandrounds", search_paths=[str(ROOT / "build" / "docs")], allow_inspection=False)
    assert {"Result", "Study", "epsilon", "simulate", "verify"} <= face.members.keys()
    html = (site / "reference" / "index.html").read_text("utf-8")
    assert [name for name in face.exports or () if f'id="grandrounds.{name}"' not in html] == []
