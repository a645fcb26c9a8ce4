"""Long numbers in texts: of records, telephones, accounts. Dates are none."""

import re
from typing import Final

from .dates import spans

MARK: Final = "[NUMBER]"
LEAST_DIGITS: Final = 6
# Six digits or more in a row, also in groups of four or three, as of insurances; and telephones, which begin with a
# plus, a bracket or a zero. Values that stand beside each other, as 120/80 98 37.5, are none of these; three of three
# digits each may be.
_NUMBER: Final = re.compile(
    r"""[0-9+(] (?<![0-9].) (?: (?<=\+) [0-9]{1,3} (?:[ ./()-]{1,3}[0-9]{1,12}){2,6}
      | (?<=\() \+?[0-9]{2,6}\) (?:[ ./-]{0,2}[0-9]{2,12}){1,4}
      | (?<=0) [0-9]{1,5} (?:[ ./-]{1,2}[0-9]{2,12}){1,4} (?:-[0-9])?
      | (?<=[0-9]) (?:[0-9]{2} [ .-] [0-9]{2,3} [ .-] [0-9]{4} | [0-9]{3} (?:[ -][0-9]{4}){2,4}
        | [0-9]{2} (?P<mark>[ -]) [0-9]{3} (?:(?P=mark)[0-9]{3}){1,3} | [0-9]{5,})
      ) (?![0-9])""",
    re.VERBOSE,
)


def without_numbers(text: str, *, day_first: bool) -> str:
    """The text with [NUMBER] for each long number that is no date; what stands before and after a date is looked at.

    >>> without_numbers("MRN 00123456, BP 120/80, call 0151 234 5678 by 07.03.2024", day_first=False)
    'MRN [NUMBER], BP 120/80, call [NUMBER] by 07.03.2024'
    """
    parts, end = [], 0
    for start, stop in (*spans(text, day_first=day_first), (len(text), len(text))):
        parts += [_NUMBER.sub(_marked, text[end:start]), text[start:stop]]
        end = stop
    return "".join(parts)


def _marked(found: re.Match[str]) -> str:
    return MARK if sum(map(str.isdigit, found[0])) >= LEAST_DIGITS else found[0]
