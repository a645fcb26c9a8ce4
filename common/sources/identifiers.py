"""Patients' identifiers: one form for all spellings that exports give one of them, and words that name nobody."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, Literal

# Whether identifiers that differ in spelling alone are one patient's. Only the site can know.
Similar = Literal["same", "different"]

_DASHES: Final = "\u2043\u2212\u02d7"  # hyphen bullet, minus, modifier minus: hyphens, which are no dashes to Unicode
_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_AROUND: Final = "\"'`´‘’‚‛“”„‟«»‹›,;|"  # NFKC makes spaces of some; the canonical form has none of either
_NUMBER: Final = re.compile(r"\+?(-?)([0-9]+)(?:[.,]([0-9]*))?(?:e([+-]?0*[0-9]{1,4}))?")
_DECIMAL_ZEROS: Final = re.compile(r"(?<=[0-9])(?:[.,]0*)+$")
_LEADING_ZEROS: Final = re.compile(r"(?<![0-9])0+(?=[0-9])")
_MISSING: Final = frozenset(
    {
        *(
            "nan",
            "nat",
            "na",
            "n/a",
            "n.a",
            "n\\a",
            "\\n",
            "nil",
            "null",
            "none",
            "inf",
            "infinity",
            "undefined",
            "void",
        ),
        *("missing", "unknown", "unk", "unbekannt", "inconnu", "desconocido", "empty", "blank", "tbd", "tba"),
        *("notavailable", "notapplicable", "notknown", "notgiven", "notrecorded"),
    }
)
_OF_MISSING: Final = "<>()[]{}#.?!*_-"  # what programs put around such a word


def canonical(identifier: str) -> str:
    """The form that all spellings of one identifier share; some identifiers of several patients share one, too.

    Without regard to compatibility forms (NFKC), case, spaces, control, format and other invisible characters, which
    hyphen it is, digits of which script, quotes and separators around it, leading zeros of each run of digits, and
    decimals that are zero; a number is the same in decimals and with an exponent. Not to be shown, nor to be taken for
    an identifier: ``canonical(a) == canonical(b)`` says that ``a`` and ``b`` may be one patient.

    >>> [canonical(spelling) for spelling in ("A-17", " a\u201117 ", "\uff21-017", "'a-1\u200b7.0'")]
    ['a-17', 'a-17', 'a-17', 'a-17']
    >>> len({canonical(spelling) for spelling in ("7", "7.0", "007", "+7", "7e0", "7,00", "\u0667")})
    1
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", identifier).casefold())
    plain = unicodedata.normalize("NFC", "".join(map(_plain, _INVISIBLE.sub("", folded))))
    text = ""
    while text != plain:  # until nothing comes off: decimals may end where a quote stood
        text, plain = plain, _DECIMAL_ZEROS.sub("", plain.strip(_AROUND) or plain)
    if number := _NUMBER.fullmatch(text):
        return _number(*number.groups(default=""))
    return _LEADING_ZEROS.sub("", text)


def names_nobody(identifier: str) -> bool:
    """Whether it is a word for a missing value, in any case and spelling, or has neither letter nor digit.

    >>> [names_nobody(text) for text in ("NaN", " n/a", "Unknown", "-", "NULL", "Ann", "0")]
    [True, True, True, True, True, False, False]
    """
    form = canonical(identifier)
    return form.strip(_OF_MISSING) in _MISSING or not any(map(str.isalnum, form))


def clashes(identifiers: Iterable[str]) -> list[tuple[int, int]]:
    """Indices of identifiers that differ where their canonical forms do not: of the first spelling, and of another.

    One pair for each further spelling, at its first place.

    >>> clashes(["7", "a", "7", "07", "A", "07"])
    [(0, 3), (1, 4)]
    """
    first_of: dict[str, int] = {}
    seen: set[str] = set()
    found = []
    for index, identifier in enumerate(identifiers):
        if identifier in seen:
            continue
        seen.add(identifier)
        first = first_of.setdefault(canonical(identifier), index)
        if first != index:
            found.append((first, index))
    return found


def _plain(character: str) -> str:
    """What is left of one character."""
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.decimal(character))
        case "Pd":
            return "-"
        case "Cc" | "Cf" | "Zs" | "Zl" | "Zp":
            return ""
    return "-" if character in _DASHES else character


def _number(sign: str, whole: str, decimals: str, exponent: str) -> str:
    """A number's digits without zeros at either end, and with the power of ten where one is left.

    Never written out: an exponent is a few characters of a file, and many gigabytes of zeros.
    """
    digits = (whole + decimals).lstrip("0")
    significant = digits.rstrip("0")
    power = int(exponent or "0") - len(decimals) + len(digits) - len(significant)
    return f"{sign}{significant}e{power}" if significant else "0"
