"""Attachments of FHIR resources as text: inline or in files below one folder, plain, HTML or RTF."""

import base64
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from .binaries import Binaries
from .elements import Element, ElementError, text_of
from .files import LONGEST
from .markup import html_text, rtf_text
from .rows import Malformed, codec

_PLAIN: Final = "text/plain"
_HTML: Final = ("text/html", "application/xhtml+xml")
_RTF: Final = ("application/rtf", "text/rtf")
_BEST_FIRST: Final = (_PLAIN, *_HTML, *_RTF)
# Types that may be named when they are not read; others could be anything that somebody wrote there.
_NAMED: Final = frozenset(
    {
        *("application/dicom", "application/msword", "application/pdf", "application/xml", "text/xml"),
        *("image/jpeg", "image/png", "image/tiff"),
    }
)
_CHARSET: Final = re.compile(r"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_WIDE: Final = re.compile(r"utf[-_]?(?:16|32)|ucs", re.IGNORECASE)
_HEAD: Final = 1024  # bytes of HTML in which it says its encoding

# 16 characters or more, in one line or in lines as MIME breaks them.
_BASE64: Final = re.compile(rb"\s*(?:[A-Za-z0-9+/]{60,}\r?\n)*[A-Za-z0-9+/]{14,}={0,2}\s*")
_NO_TEXT: Final = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Attachments:
    """How the attachments of an export are read.

    Their files lie below ``folder``, or they are ``binaries`` of the export; what says no encoding of its own has
    ``encoding``; those of content types like one of ``leave_out`` are passed over.
    """

    folder: Path
    binaries: Binaries
    encoding: str
    leave_out: frozenset[str]

    def best(self, attachments: Sequence[Element]) -> str | None:
        """The text of one document, of which the attachments are formats: of the best that can be read.

        None where all are left out. Raises ElementError, of the best of them, where none can be read.
        """
        typed = [(*_type(text_of(one, "contentType")), one) for one in attachments]
        kept = [one for one in typed if not any(fnmatchcase(one[0], pattern) for pattern in self.leave_out)]
        first: Malformed | None = None
        for kind, charset, attachment in sorted(kept, key=lambda one: _rank(one[0])):
            try:
                return self._text(kind, charset, attachment)
            except ElementError as error:
                first = first or error.malformed
        if first is not None:
            raise ElementError(first.what, first.fix)
        return None

    def _text(self, kind: str, charset: str, attachment: Element) -> str:
        if kind not in _BEST_FIRST:
            told = kind if kind in _NAMED else "of a type that is not read" if kind else "of no type"
            raise ElementError(
                f"its attachment is {told}",
                "convert it to text/plain, text/html or application/rtf, and say so in contentType; or leave documents "
                "of its type out: leave_out in [data.fhir]",
            )
        encoding = charset or ("cp1252" if kind in _RTF else self.encoding)
        content = self._content(attachment, encoding)
        if kind in _HTML and not charset:
            own = _CHARSET.search(content[:_HEAD].decode("latin-1"))
            # What can be read as ASCII is neither UTF-16 nor UTF-32, which programs say of texts that they keep so.
            encoding = own[1] if own and not _WIDE.match(own[1]) else encoding
        text = _decoded(content, encoding)
        try:
            text = html_text(text) if kind in _HTML else rtf_text(text) if kind in _RTF else text
        except ValueError:
            raise ElementError("its attachment is not the RTF that it says", "correct it or its contentType") from None
        if not text.strip():
            raise ElementError("its attachment holds no text", "export the document with its contents, or leave it out")
        return text

    def _content(self, attachment: Element, encoding: str) -> bytes:
        url = text_of(attachment, "url")
        if not text_of(attachment, "data") and url:
            binary = self.binaries.named(url)
            if binary is None:
                return _unpacked(_unpacked(self._file(url), encoding), encoding)
            attachment = binary
        data = text_of(attachment, "data")
        if not data:
            raise ElementError("its attachment has neither data nor url", "export documents with their contents")
        try:
            return _unpacked(base64.b64decode("".join(data.split()), validate=True), encoding)
        except ValueError:
            raise ElementError("its attachment's data is not base64", "write it as FHIR's base64Binary") from None

    def _file(self, url: str) -> bytes:
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("", "file"):
                what, fix = (
                    "its attachment lies on a server",
                    "put it below the export's folder, inline, or into a Binary",
                )
                raise ElementError(what, fix)
            folder = self.folder.resolve()
            path = (folder / unquote(parts.path)).resolve()
            if not path.is_relative_to(folder):
                what, fix = "its attachment's file is outside the export's folder", "say attachments in [data.fhir]"
                raise ElementError(what, fix)
            if not path.is_file():
                what, fix = "its attachment's file is not there", "put it there, export its Binary, or say attachments"
                raise ElementError(what, fix)
            if path.stat().st_size >= LONGEST:
                raise ElementError("its attachment's file is too long", "give files of less than 256 MiB")
            return path.read_bytes()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
            raise ElementError("its attachment's file cannot be read", "check its url and its permissions") from None


def _rank(kind: str) -> int:
    return _BEST_FIRST.index(kind) if kind in _BEST_FIRST else len(_BEST_FIRST)


@functools.lru_cache(maxsize=64)
def _type(content_type: str) -> tuple[str, str]:
    """The media type, and the charset if one is stated.

    >>> _type('Text/Plain; Charset="ISO-8859-1"'), _type("")
    (('text/plain', 'ISO-8859-1'), ('', ''))
    """
    kind, _, parameters = content_type.partition(";")
    charset = _CHARSET.search(parameters)
    return kind.strip().lower(), charset[1] if charset else ""


def _unpacked(content: bytes, encoding: str) -> bytes:
    """What is base64 once more, as some servers write it, decoded, if it becomes text: no note is one long word."""
    if not _BASE64.fullmatch(content):
        return content
    try:
        unpacked = base64.b64decode(b"".join(content.split()), validate=True)
        return content if _NO_TEXT.search(unpacked.decode(encoding)) else unpacked
    except (LookupError, ValueError):
        return content


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(codec(encoding))
    except (LookupError, ValueError):
        raise ElementError(
            "its attachment is not in the encoding that it says, or none",
            "say charset in its contentType, or for all of them encoding in [data], as cp1252",
        ) from None
