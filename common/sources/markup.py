"""HTML and RTF as plain text, a line for each block, as they are read on a screen."""

import re
from typing import Final

_HIDDEN: Final = frozenset({"script", "style", "title", "template"})
_CELLS: Final = frozenset({"td", "th"})
# fmt: off
_BLOCKS: Final = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dir", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html",
    "legend", "li", "main", "menu", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead",
    "tr", "ul",
})
# fmt: on
_SPACES: Final = re.compile("[ \t\n\r\f]+")


def html_text(html: str) -> str:
    """What a browser would show of HTML or XHTML, whole or a part: a line for each block, a tab between cells."""
    import lxml.etree

    shown = _Shown()
    # The text is given in one encoding, whatever it says of its own; and its nodes may have any length.
    parser = lxml.etree.HTMLParser(target=shown, encoding="utf-8", huge_tree=True)
    parser.feed(html.replace("\0", "").encode("utf-8", "replace"))
    return str(parser.close())


class _Shown:
    """Takes the events of lxml's parser; one line is open at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._hidden = 0
        self._verbatim = 0

    def start(self, tag: str, attributes: object) -> None:
        self._hidden += tag in _HIDDEN
        if tag == "br":
            self._end_line()
        elif tag in _BLOCKS:
            self._end_block()
        elif tag in _CELLS and self._line:
            self._line.append("\t")
        self._verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN
        if tag in _BLOCKS:
            self._end_block()
        self._verbatim -= tag == "pre"

    def data(self, text: str) -> None:
        if self._hidden:
            return
        if not self._verbatim:
            self._line.append(_SPACES.sub(" ", text).replace("\xa0", " "))
            return
        first, *others = text.replace("\r\n", "\n").split("\n")
        self._line.append(first)
        for other in others:
            self._end_line()
            self._line.append(other)

    def close(self) -> str:
        self._end_block()
        return "\n".join(self._lines).strip("\n")

    def _end_block(self) -> None:
        if "".join(self._line).strip():
            self._end_line()
        self._line.clear()

    def _end_line(self) -> None:
        line = "".join(self._line)
        self._lines.append(line.rstrip() if self._verbatim else re.sub(" +", " ", line).strip())
        self._line.clear()


def rtf_text(rtf: str) -> str:
    """The text of RTF, in which bytes beyond ASCII have been decoded. Raises ValueError where it is none."""
    from striprtf.striprtf import rtf_to_text

    if not rtf.lstrip().startswith("{\\rtf"):
        raise ValueError("it is not RTF")
    try:
        text: str = rtf_to_text(rtf)
        # A character beyond the first plane is two numbers in RTF, halves of one in UTF-16.
        return text.encode("utf-16", "surrogatepass").decode("utf-16").strip("\n")
    except (
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ):  # it trusts every number and every name of a code page
        raise ValueError("it is not RTF") from None
