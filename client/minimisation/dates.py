"""Dates in texts, in the forms that hospitals write, moved to other days in the same form."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, timedelta
from typing import Final

_ENGLISH: Final = (
    "January February March April May June July August September October November December",
    "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec",
)
_GERMAN: Final = (
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "Jan Feb Mär Apr Mai Jun Jul Aug Sep Okt Nov Dez",
    "Jän Feb Mrz Apr Mai Jun Jul Aug Sept Okt Nov Dez",
    "Jänner Feber Maerz April Mai Juni Juli August September Oktober November Dezember",
)
# Each language's ways to write the months, and where each name stands in them: (way, month), in the first that has it.
_WAYS: Final = tuple(tuple(way.split() for way in language) for language in (_ENGLISH, _GERMAN))
_PLACES: Final[tuple[Mapping[str, tuple[int, int]], ...]] = tuple(
    {
        name.casefold(): (number, month)
        for number, way in reversed(list(enumerate(ways)))
        for month, name in enumerate(way)
    }
    for ways in _WAYS
)
_TAILS: Final = "|".join(sorted({name[1:] for places in _PLACES for name in places}, key=len, reverse=True))
# A letter that no other goes before, and the rest of a name; some are none. A set at first is what `re` finds fast.
_MONTH: Final = rf"[JFMASONDjfmasond](?<![^\W\d_].)(?i:{_TAILS})"

# A date begins with a number that none goes before, of a day or a year, or with a month.
_FROM_NUMBER: Final = re.compile(
    rf"""(?P<first>[0-9] (?<![0-9].) [0-9]{{0,3}}) (?:
        (?P<mark>[-/]|\.[ ]?) (?P<second>[0-9]{{1,2}}) (?P=mark) (?P<third>[0-9]{{1,4}})
      | (?P<th>(?i:st|nd|rd|th))? (?P<gap>[-/]|\.?\s{{0,2}}|\s+of\s+) (?P<month>{_MONTH}) \.?,? (?:[-/]|\s{{0,2}})
        (?P<year>[0-9]{{4}}|(?<=[-/])[0-9]{{2}})
      ) (?![0-9])""",
    re.VERBOSE,
)
_FROM_MONTH: Final = re.compile(
    rf"""(?P<month>{_MONTH}) \.?\s{{1,2}} (?P<first>[0-9]{{1,2}}) (?P<th>(?i:st|nd|rd|th))?
        (?P<gap>,\s{{0,2}}|\s{{1,2}}) (?P<year>[0-9]{{4}}) (?![0-9])""",
    re.VERBOSE,
)
_FROM_YEAR: Final = re.compile(
    rf"""(?P<year>[0-9] (?<![0-9].) [0-9]{{3}}) (?P<gap>[-/]) (?P<month>{_MONTH}) (?P=gap)
        (?P<first>[0-9]{{1,2}}) (?P<th>) (?![0-9])""",
    re.VERBOSE,
)
# Before a date, the first day of a range, which has no year of its own: 1.3.-7.3.2024.
_RANGE: Final = re.compile(
    r"(?<![0-9.])(?P<first>[0-9]{1,2})\.[ ]?(?P<second>[0-9]{1,2})\.(?P<year>)\s?(?:-|bis|und)\s?\Z"
)
_LONGEST_RANGE: Final = 14  # characters before its last day
_FIRST_OF_1900S: Final = 69  # of two digits, as POSIX reads them


def shifted(text: str, days: int, *, day_first: bool) -> str:
    """The text with each date moved by so many days, in the form in which it is written; times stay.

    ISO (2024-03-07), American (3/7/2024, March 7, 2024), German (7.3.2024, 7. März 2024) and British (7 March 2024,
    07-Mar-24), of databases (07MAR2024, 2024-Mar-07) and as a range (1.3.-7.3.2024); of numbers with slashes or hyphens
    the day comes first where ``day_first``, or where there is no such date otherwise. What is no date of the
    calendar stays; so do other dates without a year, and other languages' months.

    >>> shifted("seen 2024-02-28 10:15 and 1 March 2024", 2, day_first=False)
    'seen 2024-03-01 10:15 and 3 March 2024'
    """
    parts, end = [], 0
    for found, day, names in _dates(text, day_first):
        parts += [text[end : found.start()], _moved(found, day, names, days)]
        end = found.end()
    return "".join([*parts, text[end:]])


def spans(text: str, *, day_first: bool) -> Iterator[tuple[int, int]]:
    """Where the dates of a text are, in order."""
    return (found.span() for found, _, _ in _dates(text, day_first))


_Names = tuple[str, str, str]  # the groups of year, month and day


def _dates(text: str, day_first: bool) -> Iterator[tuple[re.Match[str], date, _Names]]:
    end = 0
    every = [*_those_of(_FROM_NUMBER, text, day_first), *_those_of(_FROM_MONTH, text, day_first)]
    every += _those_of(_FROM_YEAR, text, day_first)
    for one in sorted(every, key=lambda one: one[0].start()):
        if one[0].start() >= end:
            yield from _range_to(*one, end)
            yield one
            end = one[0].end()


def _range_to(
    found: re.Match[str], last: date, names: _Names, end: int
) -> Iterator[tuple[re.Match[str], date, _Names]]:
    """The first day of a range of which a date is the last, of its year or the one before; behind ``end``."""
    if names != ("third", "second", "first"):
        return
    first = _RANGE.search(found.string, max(end, found.start() - _LONGEST_RANGE), found.start())
    if first is None:
        return
    for year in (last.year, last.year - 1):
        with suppress(ValueError):
            day = date(year, int(first["second"]), int(first["first"]))
            if day <= last:
                yield first, day, ("year", *names[1:])
                return


def _those_of(pattern: re.Pattern[str], text: str, day_first: bool) -> Iterator[tuple[re.Match[str], date, _Names]]:
    position = 0
    while found := pattern.search(text, position):
        if (read := _read(found, day_first)) is not None:
            yield found, *read
        # What looks like a date and is none may have one in it.
        position = found.start() + 1 if read is None else found.end()


def _read(found: re.Match[str], day_first: bool) -> tuple[date, _Names] | None:
    """The day that is meant, and by which groups; None where there is no such day."""
    for names in _readings(found, day_first):
        year, month, day = (found[name] for name in names)
        try:
            number = int(month) if month.isdigit() else _place(found)[1][1] + 1
            return date(_whole_year(year), number, int(day)), names
        except ValueError:
            continue
    return None


def _readings(found: re.Match[str], day_first: bool) -> Iterator[_Names]:
    if found["month"]:
        yield "year", "month", "first"
    elif len(found["first"]) == 4:
        yield "first", "second", "third"
    # Two digits are no year in a longer number, as of a version, and after hyphens, as in the doses 1-1-10.
    elif len(found["third"]) == 4 or (len(found["third"]) == 2 and found["mark"] != "-" and not _goes_on(found)):
        of_day_first, of_month_first = ("third", "second", "first"), ("third", "first", "second")
        is_day_first = day_first or found["mark"].startswith(".")
        yield from (of_day_first, of_month_first) if is_day_first else (of_month_first, of_day_first)


def _goes_on(found: re.Match[str]) -> bool:
    """Whether the same mark and a number stand before it or behind."""
    mark, text = found["mark"], found.string
    before, after = text[max(0, found.start() - 2) : found.start()], text[found.end() : found.end() + 2]
    return (before[1:] == mark and before[:1].isdigit()) or (after[:1] == mark and after[1:].isdigit())


def _moved(found: re.Match[str], day: date, names: _Names, days: int) -> str:
    """The date so many days later, as it is written; what would be beyond the calendar stays."""
    try:
        other = day + timedelta(days=days)
    except OverflowError:
        return found[0]
    parts = {names[0]: f"{other.year:04}"[4 - len(found[names[0]]) :], **_month_and_day(found, names, other)}
    text, end = "", found.start()
    for name in sorted(parts, key=found.start):
        text += found.string[end : found.start(name)] + parts[name]
        end = found.end(name)
    return text + found.string[end : found.end()]


def _whole_year(digits: str) -> int:
    if len(digits) == 4:
        return int(digits)
    return int(digits) + (1900 if int(digits) >= _FIRST_OF_1900S else 2000)


def _month_and_day(found: re.Match[str], names: _Names, other: date) -> dict[str, str]:
    _, month, day = names
    if found[month].isdigit():
        pair = found[month], found[day]
        is_wide = any(part.startswith("0") for part in pair) or all(len(part) == 2 for part in pair)
        width = 2 if is_wide else 1
        return {month: f"{other.month:0{width}}", day: f"{other.day:0{width}}"}
    is_wide = found[day].startswith("0") or found["gap"] in ("-", "/", "")
    parts = {month: _month(found, other), day: f"{other.day:02}" if is_wide else str(other.day)}
    if found["th"]:
        suffix = _ordinal(other.day)
        parts["th"] = suffix.upper() if found["th"].isupper() else suffix
    return parts


def _place(found: re.Match[str]) -> tuple[int, tuple[int, int]]:
    """The language in which a month is written, and where it stands there: (way, month). Raises ValueError."""
    name = found["month"].casefold()
    for language in (1, 0) if found["gap"].startswith(".") else (0, 1):
        if name in _PLACES[language]:
            return language, _PLACES[language][name]
    raise ValueError("some months' first letter, and another's others")


def _month(found: re.Match[str], other: date) -> str:
    language, (way, _) = _place(found)
    written = found["month"]
    if way == 0 and found.string[found.end("month")] == ".":  # May. is no whole name
        way = 1
    name = _WAYS[language][way][other.month - 1]
    return name.upper() if written.isupper() else name.lower() if written.islower() else name


def _ordinal(day: int) -> str:
    if day in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
