"""HTML and RTF as plain text, a line for each block, as they are read on a screen."""

import re
from html import escape
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
_CDATA_END: Final = "]]>"
_CDATA: Final = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_NEXT_CELL: Final = "\0"  # which no text has: it is taken out before

# striprtf's patterns of links and fonts try every end that they may have, for hours: no link is shown to them (a space
# ends a control word), nor a number or a font's name without an end; and they stop at line ends, which RTF passes over.
_FIELD: Final = re.compile(r"(\{\\field)(?=\{)", re.IGNORECASE)
_ENDLESS: Final = re.compile(r"\\[a-z]+-?[0-9]{11}|\\fcharset[0-9]+[^;]{300}", re.IGNORECASE)


def html_text(html: str) -> str:
    """What a browser would show of HTML or XHTML, whole or a part: a line for each block, a tab between cells."""
    import lxml.etree

    # HTML has no such sections. Up to the last end alone, for each beginning to find one.
    end = html.rfind(_CDATA_END) + len(_CDATA_END)
    html = _CDATA.sub(lambda found: escape(found[1], quote=False), html[:end]) + html[end:]
    shown = _Shown()
    # The text is given in one encoding, whatever it says of its own; and its nodes may have any length.
    parser = lxml.etree.HTMLParser(target=shown, encoding="utf-8", huge_tree=True)
    parser.feed(html.replace(_NEXT_CELL, "").encode("utf-8", "replace"))
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
            self._lines.append(self._taken())
        elif tag in _BLOCKS:
            self._end_block()
        self._verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN
        if tag in _BLOCKS:
            self._end_block()
        elif tag in _CELLS:
            self._line.append(_NEXT_CELL)
        self._verbatim -= tag == "pre"

    def data(self, text: str) -> None:
        if self._hidden:
            return
        if self._verbatim:
            *lines, text = text.replace("\r\n", "\n").split("\n")
            for line in lines:
                self._line.append(line)
                self._lines.append(self._taken())
        self._line.append(text)

    def close(self) -> str:
        self._end_block()
        return "\n".join(self._lines).strip("\n")

    def _end_block(self) -> None:
        if line := self._taken():
            self._lines.append(line)

    def _taken(self) -> str:
        """The open line, after which another is open."""
        cells = "".join(self._line).split(_NEXT_CELL)
        self._line.clear()
        return "\t".join(cells if self._verbatim else [" ".join(cell.split()) for cell in cells]).rstrip()


def rtf_text(rtf: str) -> str:
    """The text of RTF, in which bytes beyond ASCII have been decoded. Raises ValueError where it is none."""
    from striprtf.striprtf import rtf_to_text

    if not rtf.lstrip().startswith("{\\rtf") or _ENDLESS.search(rtf):
        raise ValueError("it is not RTF")
    try:
        text: str = rtf_to_text(_FIELD.sub(r"\1 ", rtf).replace(";", ";\n"))
        # A character beyond the first plane is two numbers in RTF, halves of one in UTF-16.
        return text.encode("utf-16", "surrogatepass").decode("utf-16").strip("\n")
    except (ArithmeticError, LookupError, TypeError, ValueError):  # of numbers and code pages that it trusted
        raise ValueError("it is not RTF") from None
