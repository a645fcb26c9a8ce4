"""How a study names the layers of a model: by their names, by a word for all, or by a pattern; and their numbers."""

import re
import warnings
from typing import Annotated, Final

from pydantic import AfterValidator, Discriminator, Field, Tag

from ..model.target_layers import ALL_LINEAR
from ..schema import LINE, Spelt

Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
# A block by its number; all between two of them are written out, as peft has them.
Block = Annotated[int, Field(ge=0, le=9999)]

# A layer by the last part of its name, or by more of it: an attribute of a model's modules.
_LAYER: Final = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
LayerName = Annotated[
    str, Spelt(_LAYER, "needs the name of a layer, as v_proj or attn.c_proj; all-linear has no brackets", 200)
]


def _layers_as_text(text: str) -> str:
    if text == ALL_LINEAR:
        return text
    if re.fullmatch(_LAYER, text):
        raise ValueError(f'names stand in a list, as ["{text}"]; text is "{ALL_LINEAR}" or a regular expression')
    if "{" in text:  # the library that stops a match stops no compilation, which takes 4 GiB for .{4294967294}
        raise ValueError(r"braces count what the library would write out in memory; write [0-9][0-9]? for [0-9]{1,2}")
    import regex  # what matches at the sites; loaded for a pattern alone

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # of sets in sets, which the two read each in its own way
            re.compile(text)
        regex.compile(text)
    except (re.error, regex.error, FutureWarning, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return text


# Text is no list of names: it is a word for all layers, or a pattern that runs at every site.
TargetModules = Annotated[
    Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=64, strict=False), Tag("[names]")]
    | Annotated[
        str,
        Spelt(LINE, "needs one line of at most 200 visible characters, single spaces between them", 200),
        AfterValidator(_layers_as_text),
        Tag("[text]"),
    ],
    Discriminator(lambda given: "[text]" if isinstance(given, str) else "[names]"),
]
