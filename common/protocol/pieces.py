"""How an envelope is carried that is too large for one message of Flower's: in pieces, kept until it is whole.

This is transport and no protocol: nothing here is signed, and nothing is believed but that bytes with a hash are those
bytes. Who sends or keeps a wrong piece loses the envelope, as by sending none. Flower's messages have the record's one
field ``envelope``, or else the fields of one of these. The server asks, piece by piece; each is answered:

| the server says | the site answers |
|---|---|
| ``Piece`` of an envelope | ``Held``: how much of it lies there, which may be more, or nothing any more |
| ``Whole``: all was sent | the answer, or of a large one the first ``Piece``; ``Held`` where not all is there |
| ``Wanted``: of that answer | the next ``Piece`` |
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from ..crypto.identity import Hex32
from ..errors import EnvelopeError
from ..schema import Section

# Of what Flower carries at once. It holds a message whole in each of its processes, some of them several times; its
# uploads have three minutes for each part, and its database takes none of 1 GB.
PIECE_BYTES: Final = 8 << 20
Size = Annotated[int, Field(ge=0, le=2**40)]


class Piece(Section):
    """What lies from ``start`` on in an envelope of ``size`` bytes, whose SHA-256 is ``whole``."""

    whole: Hex32
    size: Size
    start: Size
    piece: bytes


class Held(Section):
    """So many of an envelope's bytes are there, from its beginning."""

    held: Size


class Whole(Section):
    """The envelope of this hash is to be answered."""

    whole: Hex32


class Wanted(Section):
    """The piece from ``start`` on of the answer with the hash ``answer`` is wanted."""

    answer: Hex32
    start: Size


Said = Piece | Held | Whole | Wanted
_SAID: Final[TypeAdapter[Said]] = TypeAdapter(Said)


def read_said(record: Mapping[str, Any]) -> Said:
    """What a record's fields say; raises EnvelopeError where it is none of these, without a word of what it is."""
    try:
        return _SAID.validate_python(dict(record))
    except ValidationError:
        raise EnvelopeError(
            "a message of Flower's has other fields than this program writes",
            why="pieces of an envelope are put together by their places",
            fix="check that both ends run the version in the manifest",
        ) from None
